-- Decide which node comes for the next event. The roster lists the nodes with free handler
-- threads, longest waiting first. The head is on duty. PROMISE holds the time at which a node
-- will claim by itself or, after a wake, the time of the wake. If a node is silent for GRACE
-- after that time, it is struck off the roster. Its next poll brings it back.
local GRACE = 50000
local MOST_TOLD = 16

-- A wake is only a hint. If the client may not publish it, the rest of the script must still be
-- done.
local function tell(kind, node)
  redis.pcall('PUBLISH', string.sub(DUE, 1, -4) .. kind .. ':' .. node, '')
end

-- Make sure that a node comes for an event due at `earliest`, and one node for each of the
-- `waiting` events that are due already.
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

-- Return a score as a number, or nil. A foreign score of infinity counts as none: it is never
-- due.
local function soonest(score)
  score = tonumber(score)
  return score ~= math.huge and score or nil
end

-- Return the earliest score in DUE, or nil.
local function first_due()
  return soonest(redis.call('ZRANGE', DUE, '0', '0', 'WITHSCORES')[2])
end
