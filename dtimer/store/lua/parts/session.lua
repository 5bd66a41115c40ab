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
-- `memo_lane` is the name of the session, and `memo_seq` the number of this operation.
--
-- Commands  hget hmget hset rename
local WINDOW = 60000000
local memo_lane, memo_seq = string.match(OPERATION, '^(.+):(%d+)$')
local memo_since

-- Return the result if this operation was done before, else nil. The second result is an error
-- reply if the session has done a later operation.
local function recall()
  if not memo_lane then return nil end
  local here = redis.call('HMGET', MEMO_A, 'w', memo_lane)
  memo_since = here[1]
  local last = here[2] or redis.call('HGET', MEMO_B, memo_lane)
  if not last then return nil end
  local seq, result = string.match(last, '^(%d+):(.*)$')
  -- dtimer has not written this value.
  if not seq or #seq > 15 then return nil end
  if seq == memo_seq then return result end
  if tonumber(seq) > tonumber(memo_seq) then
    return nil, redis.error_reply('DTSTALE a later operation of this lane has been done')
  end
end

local function remember(result)
  if not memo_lane then return end
  local last = memo_seq .. ':' .. result
  local age = NOW - (tonumber(memo_since) or -WINDOW)
  if math.abs(age) < WINDOW then
    redis.call('HSET', MEMO_A, memo_lane, last)
  else
    if memo_since and age > 0 then redis.call('RENAME', MEMO_A, MEMO_B) end
    redis.call('HSET', MEMO_A, 'w', digits(NOW), memo_lane, last)
  end
end
