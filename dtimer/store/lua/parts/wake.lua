-- Decide which node claims the next event. The roster lists the nodes with free handler threads.
-- The node that has waited longest is its head, and is on duty. EXPECTED holds the time at which a
-- node will claim by itself or, after a wake, the time of the wake. A node that is silent for GRACE
-- after that time is removed from the roster. Its next poll adds it again.
--
-- A place on the roster is the time at which the node took it. That of a node that lags is BEHIND
-- more, so it comes after all nodes that are on time. It is woken only if none of these is.
--
-- Commands  publish zadd zrange zrem zscore

-- In µs.
local GRACE = 50000
-- How many nodes one script wakes at most.
local MOST_WOKEN = 16
-- 2^52. The sum with a time is below 2^53 until the year 2112, so it is a whole number in Lua.
local BEHIND = 4503599627370496

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
  local expected, on_time = 0, false
  local listed = redis.call('ZRANGE', ROSTER, 0, wanted + 7, 'WITHSCORES')
  for i = 1, #listed, 2 do
    if expected == wanted then return end
    local node, lags = listed[i], tonumber(listed[i + 1]) >= BEHIND
    if lags and on_time then return end
    local claims_at = tonumber(redis.call('ZSCORE', EXPECTED, node))
    if claims_at and NOW > claims_at + GRACE then
      redis.call('ZREM', ROSTER, node)
      redis.call('ZREM', EXPECTED, node)
    else
      if not claims_at or claims_at > math.max(earliest, NOW) then
        redis.call('ZADD', EXPECTED, digits(NOW), node)
        notify('wake', node)
      end
      expected, on_time = expected + 1, not lags
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
