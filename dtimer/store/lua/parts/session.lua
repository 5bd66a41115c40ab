-- For the scripts of `Kind once`: an operation that the client sends again must act only once.
--
-- Remember the result of the last operation of each session. If the reply was lost and the client
-- sends the operation again, it is recognised and returns the same result. An operation that
-- arrives after its successor is refused. A session is a sequence of operations, one at a time,
-- as in D. Ongaro, *Consensus: Bridging Theory and Practice*, 2014, section 6.3.
--
-- There are two hashes. MEMO_A holds the operations since the time in its field w. When it is a
-- minute old, it replaces MEMO_B, and the results in MEMO_B are forgotten. So a result is
-- remembered for at least a minute, far longer than any deadline. Idle sessions are forgotten
-- without a timer and without a key that expires. A look-up ignores the time, and no result is
-- dropped if the clock is set back: a step of the clock between two attempts must not let an
-- operation act twice.
--
-- Claims have no deadline: a node sends one again until it is answered, perhaps after its result was
-- forgotten. The claim then acts as a new one, which is safe because tokens fence. Settlements that
-- took effect before return 0, and events that were leased by a lost reply are claimed again when
-- their leases end.
--
-- Commands  hget hmget hset rename

-- How long MEMO_A is used before it replaces MEMO_B, in µs.
local WINDOW = 60000000
-- The name of the session, and the number of this operation; nil if it has no name.
local session_name, operation_seq = string.match(OPERATION, '^(.+):(%d+)$')
-- The time in the field w of MEMO_A.
local results_since

-- Whether MEMO_A has the version of the namespace in its field v. So comparing the version costs an
-- operation no command of its own. A script that changes the version changes this field, too.
local has_version

-- A script of `Kind once` calls this first, and ends with `remember`.
-- Return the result if this operation was done before, else nil. The second result is an error
-- reply if the session has done a later operation, or if the version of the namespace is not known.
local function recall()
  if not session_name then
    VERSION = redis.call('HGET', SYS, 'v')
    return nil, check_version(VERSION)
  end
  local here = redis.call('HMGET', MEMO_A, 'w', session_name, 'v')
  results_since, has_version = here[1], here[3]
  VERSION = has_version or redis.call('HGET', SYS, 'v')
  local wrong = check_version(VERSION)
  if wrong then return nil, wrong end
  local last = here[2] or redis.call('HGET', MEMO_B, session_name)
  if not last then return nil end
  local seq, result = string.match(last, '^(%d+):(.*)$')
  -- dtimer has not written this value.
  if not seq or #seq > 15 then return nil end
  if seq == operation_seq then return result end
  if tonumber(seq) > tonumber(operation_seq) then
    return nil, redis.error_reply('DTSTALE a later operation of this session has been done')
  end
end

-- Remember the result of this operation.
local function remember(result)
  if not session_name then return end
  local last = operation_seq .. ':' .. result
  local age = NOW - (tonumber(results_since) or -WINDOW)
  if math.abs(age) < WINDOW then
    redis.call('HSET', MEMO_A, session_name, last)
  else
    if results_since and age > 0 then redis.call('RENAME', MEMO_A, MEMO_B) end
    redis.call('HSET', MEMO_A, 'w', digits(NOW), session_name, last)
    has_version = false
  end
  if not has_version and VERSION then redis.call('HSET', MEMO_A, 'v', VERSION) end
end
