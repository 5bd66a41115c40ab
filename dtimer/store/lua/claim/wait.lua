-- Decide when this node should claim again, and wake other nodes for events that stay unclaimed.
--
-- Commands  zadd zcount
-- Reads     ahead claimed earliest expected free horizon ids lease limit node not_yet occurred
-- Reads     on_duty paused reserve strict top trouble unclaimed
-- Sets      earliest unclaimed wait

local wait = -1
if #ids > 0 and (on_duty or free > 0) then
  if limit == 1 and claimed == 1 and not occurred and not strict then
    earliest = finite(math.min(finite(top[4]) or math.huge, NOW + lease))
  else
    earliest = first_due()
  end
end
-- Claim again at once if events are due that are not kept for other nodes. There are three causes:
-- the limit of this claim was used up by events that were buried, the bodies have reached the limit
-- of bytes, or the next occurrence is due already.
local at_once = free > 0 and earliest and earliest <= NOW
  and (#ids > claimed + not_yet or expected == 0) and not (strict and claimed == 0)
if earliest and not paused then
  -- The next claim should be made half of the look-ahead before the next event is due. It then
  -- claims this event, and the events shortly after it, ahead of time. If the event is nearer than
  -- that, this claim has left it on purpose, so the next claim is made when it is due.
  local lead = reserve and 0 or math.floor(ahead / 2)
  local until_next = earliest - NOW > lead and earliest - NOW - lead or earliest - NOW
  if on_duty == node then
    -- Events that are due and unclaimed are kept for nodes that are expected to claim now.
    wait = at_once and 0 or earliest > NOW and until_next or GRACE
    redis.call('ZADD', EXPECTED, digits(NOW + wait), node)
  elseif on_duty then
    unclaimed = unclaimed or redis.call('ZCOUNT', DUE, '-inf', horizon)
    wake_next(earliest, unclaimed)
    if unclaimed > 0 and free > 0 then wait = GRACE end
  elseif free > 0 then
    -- No node can be woken, so each node that claims is told when to claim again.
    wait = math.max(strict and GRACE or 0, until_next)
  end
  if at_once or trouble then wait = 0 end
end
