-- Store events under ids that somebody has chosen, and wake somebody when the earliest due
-- time moved closer. Those that have none are stored by mint.lua.
--
-- Uses      guard memo rouse events
--
-- ARGV[3]   what to do about an id that exists already: replace, keep, error, earliest,
--           latest. The last two compare due times with an event that waits, and supersede one
--           in flight
-- ARGV[4]   and on, for each event in turn:
--             id
--             when  '+<µs>' from now, or '<µs>' since the epoch; the past means now.
--                   After '=' it is moved behind what is due within the millisecond
--             body  '<expires>,<max_retries>|<payload>', where it expires likewise or ''
--
-- Returns   '<letters>;<posted>;<id>'
--   letters one per event: 1 stored, 0 not stored because an existing one was kept; or x when
--           nothing was stored because `id` is pending already
--   posted  how many events were ever posted, these included; '' where nothing was stored
--           now
local policy = ARGV[3]

local done, stale = recall()
if stale then return stale end
local letters, id = string.match(done or '', '^(%w*);(.*)$')
if letters then
  -- Written anew, on the connection of this try: a WAIT counts from the last write of its
  -- own. Redis allows a HDEL when it is out of memory, and with it what follows.
  redis.call('HDEL', MEMO_A, '')
  remember(done)
  return letters .. ';;' .. id
end

local wrong = guard(DUE, BODY, LEASE, TRIES, DEAD, GRAVES, SYS)
if wrong then return wrong end

local function in_line(when)
  for _ = 1, 20 do
    local last = redis.call(
      'ZREVRANGEBYSCORE', DUE, digits(when + 999), digits(when), 'WITHSCORES', 'LIMIT', 0, 1)[2]
    if not last then return when end
    if tonumber(last) < when + 999 then return tonumber(last) + 1 end
    when = when + 1000
  end
  return when
end

local function moment(text)
  if string.sub(text, 1, 1) == '+' then return NOW + tonumber(string.sub(text, 2)) end
  return tonumber(text)
end

local function body(text)
  local after, rest = string.match(text, '^%+(%d+)(.*)$')
  return after and digits(NOW + after) .. rest or text
end

-- Returns whether an event of this id exists and, if it waits, when it is due.
local function existing(id)
  local score = redis.call('ZSCORE', DUE, id)
  if not score then return false end
  local token, _, _, cancelled = parse_lease(redis.call('HGET', LEASE, id))
  -- An event that was cancelled in flight counts as gone, because it is not retried.
  if cancelled then return false end
  return true, not token and tonumber(score)
end

local scores, bodies, ids, letters = {}, {}, {}, {}
local soonest, due_now = math.huge, 0
for i = 4, #ARGV, 3 do
  local id = ARGV[i]
  local behind, text = string.match(ARGV[i + 1], '^(=?)(.*)$')
  local when = math.max(moment(text), NOW)
  if behind == '=' then when = in_line(when) end
  local keep = false
  if policy ~= 'replace' then
    local exists, due = existing(id)
    if exists and policy == 'error' then
      remember('x;' .. id)
      return 'x;;' .. id
    end
    -- An event in flight has no due time to compare: it is superseded, or this post would be
    -- lost if its handler returns.
    keep = exists and policy == 'keep'
      or due and policy == 'earliest' and due <= when
      or due and policy == 'latest' and due >= when
  end
  letters[#letters + 1] = keep and '0' or '1'
  if not keep then
    ids[#ids + 1] = id
    scores[#scores + 1] = digits(when)
    scores[#scores + 1] = id
    bodies[#bodies + 1] = id
    bodies[#bodies + 1] = body(ARGV[i + 2])
    soonest = math.min(soonest, when)
    if when <= NOW then due_now = due_now + 1 end
  end
end

local posted = ''
if #ids > 0 then
  -- Whoever is on duty has promised to come for what was the earliest; where that was put
  -- off just now, he finds out.
  local earliest = math.min(first_due() or math.huge, soonest)
  local wakes = soonest == earliest or due_now > 0
  wrong = wakes and guard(ROSTER, PROMISE)
  if wrong then return wrong end
  -- The first write is one that Redis refuses when it is out of memory.
  local added = redis.call('ZADD', DUE, unpack(scores))
  redis.call('HSET', BODY, unpack(bodies))
  if added < #ids then
    redis.call('HDEL', LEASE, unpack(ids))
    redis.call('HDEL', TRIES, unpack(ids))
  end
  if redis.call('HDEL', DEAD, unpack(ids)) > 0 then
    redis.call('ZREM', GRAVES, unpack(ids))
  end
  posted = count('posted', #ids)
  if wakes then rouse(earliest, due_now) end
end
letters = table.concat(letters)
remember(letters .. ';')
return letters .. ';' .. posted .. ';'
