-- What the last operation of each lane came to, so that one whose reply was lost is
-- recognised when it is tried again, and one that arrives after its successor is not
-- done at all (sessions, as in D. Ongaro, *Consensus: Bridging Theory and Practice*,
-- 2014, section 6.3). A lane is a connection's worth of operations, one at a time.
--
-- Two hashes take turns, a minute each; the field w tells whose minute a hash holds.
-- So a result is remembered for one to two minutes, far beyond any deadline, and idle
-- lanes are forgotten without a timer and without a key that expires.
local WINDOW = 60000000
local memo_lane, memo_seq = string.match(ARGV[2], '^(.+):(%d+)$')
local memo_window = math.floor(NOW / WINDOW)
local memo_here, memo_before = MEMO_A, MEMO_B
if memo_window % 2 == 1 then
  memo_here, memo_before = MEMO_B, MEMO_A
end
local memo_current = false

-- Returns the result when this very operation was done before, or else nil; and as a
-- second value the error reply when the lane has moved on.
local function recall()
  if not memo_lane then return nil end
  local here = redis.call('HMGET', memo_here, 'w', memo_lane)
  memo_current = here[1] == digits(memo_window)
  local last = memo_current and here[2]
  if not last then
    local before = redis.call('HMGET', memo_before, 'w', memo_lane)
    last = before[1] == digits(memo_window - 1) and before[2]
  end
  if not last then return nil end
  local seq, result = string.match(last, '^(%d+):(.*)$')
  if tonumber(seq) == tonumber(memo_seq) then return result end
  if tonumber(seq) > tonumber(memo_seq) then
    return nil, redis.error_reply('DTSTALE a later operation of this lane has been done')
  end
end

-- Write strings so that any can be read back: a foreign id may hold whatever it likes.
local function counted(list)
  local pieces = {}
  for i, text in ipairs(list) do pieces[i] = #text .. ':' .. text end
  return table.concat(pieces)
end

local function uncounted(text)
  local list, at = {}, 1
  while at <= #text do
    local length, start = string.match(text, '^(%d+):()', at)
    list[#list + 1] = string.sub(text, start, start + length - 1)
    at = start + length
  end
  return list
end

local function remember(result)
  if not memo_lane then return end
  if memo_current then
    redis.call('HSET', memo_here, memo_lane, memo_seq .. ':' .. result)
  else
    redis.call('DEL', memo_here)
    redis.call('HSET', memo_here, 'w', digits(memo_window), memo_lane, memo_seq .. ':' .. result)
  end
end
