-- What the last operation of each lane came to, so that one whose reply was lost is
-- recognised when it is tried again, and one that arrives after its successor is not
-- done at all (sessions, as in D. Ongaro, *Consensus: Bridging Theory and Practice*,
-- 2014, section 6.3). A lane is a connection's worth of operations, one at a time.
--
-- Two hashes: the first holds what was done since the time in its field w, and after a
-- minute becomes the second, what that held being forgotten. So a result is remembered for
-- a minute at the least, far beyond any deadline, and idle lanes are forgotten without a
-- timer and without a key that expires. Nothing is looked up by the time, nor dropped
-- because it was set back: a clock that is stepped between two tries must not have an
-- operation done twice.
local WINDOW = 60000000
local memo_lane, memo_seq = string.match(ARGV[2], '^(.+):(%d+)$')
local memo_since

-- Returns the result when this very operation was done before, or else nil; and as a
-- second value the error reply when the lane has moved on.
local function recall()
  if not memo_lane then return nil end
  local here = redis.call('HMGET', MEMO_A, 'w', memo_lane)
  memo_since = here[1]
  local last = here[2] or redis.call('HGET', MEMO_B, memo_lane)
  if not last then return nil end
  local seq, result = string.match(last, '^(%d+):(.*)$')
  -- Somebody else has written it.
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
