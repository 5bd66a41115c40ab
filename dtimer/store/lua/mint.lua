-- Store events under ids that were made for them, and wake somebody when the earliest due
-- time moved closer.
--
-- Uses      memo
-- Later     guard rouse
--
-- ARGV[3]   id
-- ARGV[4]   when: '+<µs>' from now, or '<µs>' since the epoch; the past means now
-- ARGV[5]   body: '<expires>,<max_retries>|<payload>', where it expires likewise or ''
--           and so on, for each event in turn
--
-- Returns   '<letter>;<posted>;<id>'
--   letter  1 when all were stored; x when none was, because `id` is pending already
--   posted  how many events were ever posted, these included; '' where nothing was stored
--           now
local done, stale = recall()
if stale then return stale end
if done then
  local letter, id = string.match(done, '^([1x]);(.*)$')
  if letter then
    -- Written anew, on the connection of this try: a WAIT counts from the last write of its
    -- own. Redis allows a HDEL when it is out of memory, and with it what follows.
    redis.call('HDEL', MEMO_A, '')
    remember(done)
    return letter .. ';;' .. id
  end
end

-- Of text that begins with a plus sign.
local function relative(text)
  return string.byte(text) == 43
end

local function moment(text)
  return math.max(relative(text) and NOW + tonumber(text) or tonumber(text), NOW)
end

local function body(text)
  if not relative(text) then return text end
  local after, rest = string.match(text, '^%+(%d+)(.*)$')
  return digits(NOW + after) .. rest
end

-- To look for foreign types first would cost as much as all this. So they are met, and what
-- was written before is taken back. The first write is one that Redis refuses when it is out
-- of memory.
local count, soonest, due_now, added, stored, taken = (#ARGV - 2) / 3, math.huge, 0, nil, nil, nil
if count == 1 then
  local id = ARGV[3]
  soonest = moment(ARGV[4])
  if soonest == NOW then due_now = 1 end
  added = redis.pcall('ZADD', DUE, 'NX', digits(soonest), id)
  if added == 1 then
    stored = redis.pcall('HSET', BODY, id, body(ARGV[5]))
  elseif added == 0 then
    taken = id
  end
else
  local ids, scores, bodies = {}, {}, {}
  local text, when, score
  for i = 1, count do
    local id = ARGV[3 * i]
    -- Often all have the same.
    if ARGV[3 * i + 1] ~= text then
      text = ARGV[3 * i + 1]
      when = moment(text)
      score = digits(when)
      if when < soonest then soonest = when end
    end
    if when == NOW then due_now = due_now + 1 end
    ids[i] = id
    scores[2 * i - 1], scores[2 * i] = score, id
    bodies[2 * i - 1], bodies[2 * i] = id, body(ARGV[3 * i + 2])
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
  -- Whoever is on duty has promised to come for what was the earliest.
  local head = redis.pcall('ZRANGE', DUE, '0', '0', 'WITHSCORES')
  wakes = due_now > 0 or tonumber(head[2]) == soonest
  wrong = head.err and head or wakes and later()(ROSTER, PROMISE)
end
if not wrong then
  local total = redis.pcall('HINCRBY', SYS, 'n:posted', digits(count))
  if type(total) == 'number' then
    posted = digits(total)
  else
    -- That somebody else has put there what is no number, must not undo a post.
    wrong = later()(SYS)
  end
end
if wrong then
  if type(added) == 'number' then
    local ids = {}
    for i = 1, count do ids[i] = ARGV[3 * i] end
    redis.pcall('HDEL', BODY, unpack(ids))
    redis.call('ZREM', DUE, unpack(ids))
  end
  return later()(DUE, BODY) or wrong
end
if wakes then
  local _, rouse = later()
  rouse(soonest, due_now)
end
remember('1;')
return '1;' .. posted .. ';'
