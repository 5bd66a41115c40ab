-- Find the events that this claim may take, and how many it must leave for other nodes.
--
-- Commands  hexists hmget hstrlen zcount zrange zrangebyscore zscore
-- Reads     ahead known lags limit most_bytes now other other_lags strict
-- Sets      ahead candidates earliest expected horizon known last_token most_bytes paused top
-- Sets      unclaimed

-- A node with one free handler thread claims one event. Read two, because the second tells when the
-- next event is due.
local top = redis.call('ZRANGE', DUE, '0', limit > 0 and '1' or '0', 'WITHSCORES')
local earliest = finite(top[2])
local horizon = digits(NOW + ahead)
local paused, last_token = false, 0
-- Ids and scores.
local candidates = {}
-- `unclaimed` is how many events are due by the horizon and stay unclaimed, nil if not counted.
-- `expected` is how many other nodes are expected to claim now.
local unclaimed, expected = 0, 0
if earliest and earliest <= NOW + ahead then
  local pause, version, token = unpack(redis.call('HMGET', SYS, 'paused', 'v', 'token'))
  -- Events that another version of dtimer has stored are not claimed. The node tries to register
  -- again, and that is refused with the reason.
  local foreign = check_version(version) ~= nil
  known = known and not foreign
  paused, last_token = foreign or pause == '1', tonumber(token or '0') or 0
  unclaimed = nil
  if lags and other and not other_lags then
    -- If a node that is on time is expected to claim by then, leave all events to it.
    local claims_at = tonumber(redis.call('ZSCORE', EXPECTED, other))
    if claims_at and claims_at <= math.max(earliest, NOW) and NOW <= claims_at + GRACE
      and redis.call('HEXISTS', NODES, other) == 1 then
      expected, ahead, horizon = 1, 0, now
    end
  end
  if limit > 0 and not paused and expected == 0 then
    candidates = limit == 1 and {top[1], top[2]} or redis.call(
      'ZRANGEBYSCORE', DUE, '-inf', horizon, 'WITHSCORES', 'LIMIT', '0', digits(limit))
    -- Keep one event for each node that is expected to claim now. Otherwise a fast node would take
    -- all of the work.
    expected = redis.call('ZCOUNT', EXPECTED, digits(NOW - GRACE), now)
    if expected > 0 then
      -- Count only registered nodes. EXPECTED may contain names that dtimer has not written, and no
      -- event may be kept for these.
      local names = redis.call(
        'ZRANGEBYSCORE', EXPECTED, digits(NOW - GRACE), now, 'LIMIT', '0', '100')
      expected = 0
      for _, registration in ipairs(redis.call('HMGET', NODES, unpack(names))) do
        if registration then expected = expected + 1 end
      end
      unclaimed = redis.call('ZCOUNT', DUE, '-inf', horizon)
      while #candidates > 0 and #candidates / 2 > unclaimed - expected do
        candidates[#candidates] = nil
        candidates[#candidates] = nil
      end
    elseif #candidates / 2 < limit then
      unclaimed = #candidates / 2
    end
    if strict then
      -- Events that this node cannot receive are left for other nodes, which are woken for them.
      unclaimed = redis.call('ZCOUNT', DUE, '-inf', horizon)
      local due = redis.call('ZRANGEBYSCORE', DUE, '-inf', horizon, 'WITHSCORES',
        'LIMIT', '0', digits(limit + MOST_SKIPPED))
      candidates = {}
      for i = 1, #due, 2 do
        if #candidates < 2 * math.min(limit, unclaimed - expected)
          and redis.call('HSTRLEN', BODY, due[i]) <= most_bytes then
          candidates[#candidates + 1] = due[i]
          candidates[#candidates + 1] = due[i + 1]
        end
      end
      most_bytes = math.min(most_bytes, MOST_BYTES)
    end
  end
end
