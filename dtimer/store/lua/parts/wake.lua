-- Decide which node claims the next event. The roster lists the nodes with free handler threads.
-- The node that has waited longest is its head, and is on duty. EXPECTED holds the time at which a
-- node will claim by itself or, after a wake, the time of the wake. A node that is silent for GRACE
-- after that time is removed from the roster. Its next poll adds it again.
--
-- Commands  publish zadd zrange zrem zscore

-- In µs.
local GRACE = 50000
-- How many nodes one script wakes at most.
local MOST_WOKEN = 16

-- Publish a wake or an echo to a node. Both are only hints: if the client may not publish, the rest
-- of the script must still run.
local function notify(kind, node)
  redis.pcall('PUBLISH', string.sub(DUE, 1, -4) .. kind .. ':' .. node, '')
end

-- Make sure that one node claims at `earliest`, when the next event is due. If `waiting` events are
-- due already, make sure that as many nodes claim now, MOST_WOKEN at most. A script that has read
-- only the earliest event passes 1 if that is due, else 0.
local function wake_next(earliest, waiting)
  local wanted = math.max(1, math.min(waiting, MOST_WOKEN))
  local expected = 0
  for _, node in ipairs(redis.call('ZRANGE', ROSTER, 0, wanted + 7)) do
    if expected == wanted then return end
    local claims_at = tonumber(redis.call('ZSCORE', EXPECTED, node))
    if claims_at and NOW > claims_at + GRACE then
      redis.call('ZREM', ROSTER, node)
      redis.call('ZREM', EXPECTED, node)
    else
      if not claims_at or claims_at > math.max(earliest, NOW) then
        redis.call('ZADD', EXPECTED, digits(NOW), node)
        notify('wake', node)
      end
      expected = expected + 1
    end
  end
end

-- Return a score as a number, or nil if there is none. An infinite score, which dtimer never
-- writes, counts as none, because it is never due.
local function finite(score)
  score = tonumber(score)
  return score ~= math.huge and score or nil
end

-- Return the earliest score in DUE, or nil.
local function first_due()
  return finite(redis.call('ZRANGE', DUE, '0', '0', 'WITHSCORES')[2])
end
