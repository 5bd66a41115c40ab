-- Store events under generated ids. Wake a node if the earliest due time has moved closer.
--
-- Kind      once
-- Roles     producer
-- Uses      session
-- Later     types.check_types wake.wake_next
-- Commands  hdel hincrby hset zadd zmscore zrange zrem
--
-- Arguments
--   events...  three elements for each event:
--     id
--     when     '+<µs>' from now, or '<µs>' since the epoch; a past time means now
--     body     as in parts/format.lua; <expires> may also be '+<µs>' from now
--
-- Returns   '<letter>;<posted>;<id>'
--   letter  1 if all were stored; x if none was, because `id` is pending already
--   posted  how many events were ever posted, including these; '' if nothing was stored now
local done, stale = recall()
if stale then return stale end
if done then
  local letter, id = string.match(done, '^([1x]);(.*)$')
  if letter then
    -- Write the result again on the connection of this attempt, because WAIT counts from the last
    -- write of its own connection. Redis allows an HDEL when it is out of memory, and then the
    -- HSET too.
    redis.call('HDEL', MEMO_A, '')
    remember(done)
    return letter .. ';;' .. id
  end
end

-- Return the time that an argument `when` states.
local function moment(text)
  -- The byte 43 is the plus sign.
  return math.max(string.byte(text) == 43 and NOW + tonumber(text) or tonumber(text), NOW)
end

-- Checking the types of the keys first would cost as much as the post. Instead, a write that
-- meets a wrong type fails, and the writes before it are undone. Redis refuses the first write
-- when it is out of memory, so nothing is half stored then. The first function that `later` returns
-- is check_types.
-- `taken` is an id that is pending already.
local count, earliest_posted, due_now = (#ARGV - events + 1) / 3, math.huge, 0
local added, stored, taken
if count == 1 then
  local id = ARGV[events]
  earliest_posted = moment(ARGV[events + 1])
  if earliest_posted == NOW then due_now = 1 end
  added = redis.pcall('ZADD', DUE, 'NX', digits(earliest_posted), id)
  if added == 1 then
    stored = redis.pcall('HSET', BODY, id, posted_body(ARGV[events + 2]))
  elseif added == 0 then
    taken = id
  end
else
  local ids, scores, bodies = {}, {}, {}
  local text, when, score
  for i = 1, count do
    local at = events + 3 * i - 3
    local id = ARGV[at]
    -- The events of a batch often have the same time.
    if ARGV[at + 1] ~= text then
      text = ARGV[at + 1]
      when = moment(text)
      score = digits(when)
      if when < earliest_posted then earliest_posted = when end
    end
    if when == NOW then due_now = due_now + 1 end
    ids[i] = id
    scores[2 * i - 1], scores[2 * i] = score, id
    bodies[2 * i - 1], bodies[2 * i] = id, posted_body(ARGV[at + 2])
  end
  added = redis.pcall('ZMSCORE', DUE, unpack(ids))
  if not added.err then
    for i = 1, count do taken = taken or added[i] and ids[i] end
    added = taken or redis.pcall('ZADD', DUE, unpack(scores))
    if added == count then stored = redis.pcall('HSET', BODY, unpack(bodies)) end
  end
end
if taken then
  remember('x;' .. taken)
  return 'x;;' .. taken
end

local wrong = type(added) == 'table' and added or type(stored) == 'table' and stored
local posted, wakes = '', false
if not wrong then
  -- If another event is due earlier, the node on duty already claims at that time.
  local head = redis.pcall('ZRANGE', DUE, '0', '0', 'WITHSCORES')
  wakes = due_now > 0 or tonumber(head[2]) == earliest_posted
  wrong = head.err and head or wakes and later()(ROSTER, EXPECTED)
end
if not wrong then
  local total = redis.pcall('HINCRBY', SYS, 'n:posted', digits(count))
  if type(total) == 'number' then
    posted = digits(total)
  else
    -- A total with a value that dtimer has not written must not undo the post. A SYS of the wrong
    -- type does undo it.
    wrong = later()(SYS)
  end
end
if wrong then
  if type(added) == 'number' then
    local ids = {}
    for i = 1, count do ids[i] = ARGV[events + 3 * i - 3] end
    redis.pcall('HDEL', BODY, unpack(ids))
    redis.call('ZREM', DUE, unpack(ids))
  end
  return later()(DUE, BODY) or wrong
end
if wakes then
  local _, wake_next = later()
  wake_next(earliest_posted, due_now)
end
remember('1;')
return '1;' .. posted .. ';'
