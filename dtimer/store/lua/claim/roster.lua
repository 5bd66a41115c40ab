-- Put this node on the roster if it has free handler threads, at the tail if it took work. If no
-- other node is listed, a node without free threads also stays (`reserve`) if some of its events
-- were claimed ahead: the threads for these events are free until the events are due. A node on
-- time does so, too, if all others lag.
--
-- A node that lags has a place behind all nodes that are on time, also if it took no work.
--
-- Commands  zadd zrem zscore
-- Reads     claimed claimed_early first first_place hears lags limit node now other other_lags
-- Reads     second second_place
-- Sets      free on_duty reserve

local free = limit - claimed
local reserve = free <= 0 and claimed_early > 0 and (not other or other_lags and not lags)
-- The node at the head of the roster after this claim; nil if the roster is empty.
local on_duty = other
if hears and (free > 0 or reserve) then
  local place
  if claimed == 0 then
    place = first == node and first_place or second == node and second_place
    if lags and not place then place = redis.call('ZSCORE', ROSTER, node) end
    place = tonumber(place)
  end
  if place and lags == (place >= BEHIND) then
    -- The node keeps its place.
    on_duty = first
  else
    if lags then
      redis.call('ZADD', ROSTER, digits(NOW + BEHIND), node)
    elseif claimed > 0 then
      redis.call('ZADD', ROSTER, now, node)
    else
      -- If the node is listed further behind, it keeps its place, unless that is one of a node that
      -- lags.
      redis.call('ZADD', ROSTER, 'LT', now, node)
    end
    if not other or other_lags and not lags then on_duty = node end
  end
elseif first == node or second then
  redis.call('ZREM', ROSTER, node)
end
