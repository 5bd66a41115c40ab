-- Decide which node claims the next event. The roster lists the nodes with free handler threads.
-- The node that has waited longest is its head, and is on duty. PROMISE holds the time at which a
-- node will claim by itself or, after a wake, the time of the wake. A node that is silent for GRACE
-- after that time is removed from the roster. Its next poll puts it back.
--
-- Commands  publish zadd zrange zrem zscore
local GRACE = 50000
local MOST_TOLD = 16

-- A wake is only a hint. If the client may not publish it, the rest of the script must still run.
local function tell(kind, node)
  redis.pcall('PUBLISH', string.sub(DUE, 1, -4) .. kind .. ':' .. node, '')
end

-- Make sure that one node claims at `earliest`, when the next event is due. If `waiting` events are
-- due already, make sure that as many nodes claim now, MOST_TOLD at most.
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

-- Return a score as a number, or nil if there is none. An infinite score, which dtimer never
-- writes, counts as none, because it is never due.
local function soonest(score)
  score = tonumber(score)
  return score ~= math.huge and score or nil
end

-- Return the earliest score in DUE, or nil.
local function first_due()
  return soonest(redis.call('ZRANGE', DUE, '0', '0', 'WITHSCORES')[2])
end
