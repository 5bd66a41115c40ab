-- Put this node on the roster if it has free handler threads, at the tail if it took work. If no
-- other node is listed, a node without free threads also stays (`reserve`) if some of its events
-- were claimed ahead: the threads for these events are free until the events are due.
--
-- Commands  zadd zrem
-- Reads     claimed claimed_early first hears limit node now second
-- Sets      free on_duty reserve

local free = limit - claimed
local alone = (not first or first == node) and (not second or second == node)
local reserve = free <= 0 and claimed_early > 0 and alone
local listed = first == node or second == node
-- The node at the head of the roster after this claim; nil if the roster is empty.
local on_duty
if hears and (free > 0 or reserve) then
  if claimed > 0 then
    redis.call('ZADD', ROSTER, now, node)
    on_duty = first ~= node and first or second ~= node and second or node
  else
    if not listed then redis.call('ZADD', ROSTER, 'NX', now, node) end
    on_duty = first or node
  end
else
  if listed or second then redis.call('ZREM', ROSTER, node) end
  on_duty = first ~= node and first or second
end
