-- Who comes for the next event. The roster lists the nodes with free hands, the longest
-- waiting first; the head is on duty. A promise is the time at which a node will ask by
-- itself, or, once it has been told to come, the time of the telling. A node that is
-- silent for a grace after its promise is struck off; its own poll brings it back.
local GRACE = 50000
local MOST_TOLD = 16

-- A wake is only a hint: where it may not be sent, the work it comes with is done all the same.
local function tell(kind, node)
  redis.pcall('PUBLISH', string.sub(DUE, 1, -4) .. kind .. ':' .. node, '')
end

-- See to it that somebody comes for an event due at `earliest`, and one node for each of
-- the `waiting` events that are due already.
local function rouse(earliest, waiting)
  local wanted = math.max(1, math.min(waiting, MOST_TOLD))
  local expected = 0
  for _, node in ipairs(redis.call('ZRANGE', ROSTER, 0, wanted + 7)) do
    if expected == wanted then return end
    local promise = tonumber(redis.call('ZSCORE', PROMISE, node))
    if promise and NOW > promise + GRACE then
      redis.call('ZREM', ROSTER, node)
      redis.call('ZREM', PROMISE, node)
    else
      if not promise or promise > math.max(earliest, NOW) then
        redis.call('ZADD', PROMISE, digits(NOW), node)
        tell('wake', node)
      end
      expected = expected + 1
    end
  end
end

-- A score as a number, or nil where it is none: what somebody else has put at infinity is never
-- due.
local function soonest(score)
  score = tonumber(score)
  return score ~= math.huge and score or nil
end

-- The first score of the sorted set of truth, or nil.
local function first_due()
  return soonest(redis.call('ZRANGE', DUE, '0', '0', 'WITHSCORES')[2])
end
