-- Settle events: `confirms` is the number of confirmed events, and `others` is the number of events
-- that are settled in other ways. Their arguments begin at ARGV[at]: id and token of each confirmed
-- event, then id, token, verdict, wait in µs and error of each of the others.
--
-- verdict   retry    start it again after the wait; bury it if it has no attempt left
--           release  undo a claim that was never started
--           snooze   start it again after the wait, without counting this attempt; the argument for
--                    the error is the reason, '' if the handler has asked for it
--           bury     move it to the dead letters; the argument for the wait is the reason
--
-- Returns   one character for each: 1 done, 0 not held under this token, d now a dead letter,
--           c cancelled meanwhile and removed. If a key has the wrong type: nil and an error
--           reply, and nothing has been done
--
-- Commands  hdel hget hmget hset zadd zrem
local function settle(at, confirms, others)
  local results, occurrences = {}, {}
  local wrong = others > 0
    and check_types(DUE, BODY, LEASE, TRIES, DEAD, DIED, SYS, ROSTER, EXPECTED, TEMPLATES, STATES)
  if wrong then return nil, wrong end
  if confirms > 0 then
    local ids, gone = {}, {}
    for i = 1, confirms do ids[i] = ARGV[at + 2 * i - 2] end
    local leases = redis.call('HMGET', LEASE, unpack(ids))
    local seen = {}
    for i, id in ipairs(ids) do
      local held, flags = string.match(leases[i] or '', TOKEN_AND_FLAGS)
      if held and held == ARGV[at + 2 * i - 1] and not seen[id] then
        seen[id] = true
        gone[#gone + 1] = id
        if string.find(flags, 's', 1, true) then occurrences[#occurrences + 1] = id end
        results[i] = '1'
      else
        results[i] = '0'
      end
    end
    if #occurrences > 0 then
      wrong = check_types(DUE, BODY, TRIES, DEAD, DIED, TEMPLATES, STATES)
    end
    if wrong then return nil, wrong end
    if #gone > 0 then
      -- Delete the leases last. If a key has the wrong type, the same settlement can be sent
      -- again.
      redis.call('HDEL', BODY, unpack(gone))
      redis.call('ZREM', DUE, unpack(gone))
      redis.call('HDEL', LEASE, unpack(gone))
      count('confirmed', #gone)
    end
    at = at + 2 * confirms
  end
  for i = 0, others - 1 do
    local id, token, verdict = ARGV[at + 5 * i], ARGV[at + 5 * i + 1], ARGV[at + 5 * i + 2]
    local wait, err = ARGV[at + 5 * i + 3], ARGV[at + 5 * i + 4]
    local held, attempt, due, cancelled, _, flags = parse_lease(redis.call('HGET', LEASE, id))
    local result = '1'
    if not held or held ~= token then
      result = '0'
    elseif cancelled then
      remove(id)
      count('cancelled', 1)
      result = 'c'
    elseif verdict == 'bury' then
      if wait == 'unknown_kind' then count('unknown', 1) end
      bury(id, attempt, wait, err)
      result = 'd'
    elseif verdict == 'release' then
      release(id, attempt, due)
    elseif verdict == 'snooze' then
      -- Format snoozed_body
      release(id, attempt, digits(NOW + tonumber(wait)), 'snoozed')
      local body = snoozed_body(redis.call('HGET', BODY, id) or '', err)
      if body then redis.call('HSET', BODY, id, body) end
      if err == 'unknown_kind' then count('unknown', 1) end
    else
      -- Format without_snooze
      local body = redis.call('HGET', BODY, id)
      local _, max_retries = parse_body(body)
      if attempt > (max_retries or 0) then
        bury(id, attempt, 'failed', err)
        result = 'd'
      else
        redis.call('ZADD', DUE, digits(NOW + tonumber(wait)), id)
        redis.call('HDEL', LEASE, id)
        redis.call('HSET', TRIES, id, attempt)
        body = without_snooze(body)
        if body then redis.call('HSET', BODY, id, body) end
        count('retried', 1)
      end
    end
    results[#results + 1] = result
    if (result == 'c' or result == 'd') and string.find(flags, 's', 1, true) then
      occurrences[#occurrences + 1] = id
    end
  end
  for _, id in ipairs(occurrences) do schedules().ended(id) end
  return table.concat(results)
end
