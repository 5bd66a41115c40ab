-- Store events under ids that the user chose. Wake a node if the earliest due time has moved
-- closer. Events with generated ids are stored by lua/post_new.lua.
--
-- Kind      once
-- Roles     producer
-- Uses      types session wake events
-- Commands  hdel hget hset zadd zrem zrevrangebyscore zscore
--
-- Arguments
--   policy     what to do if the id exists: replace, keep, error, earliest, latest. The last two
--              compare due times with an event that waits, and replace an event in flight
--   events...  three elements for each event:
--     id
--     when     '+<µs>' from now, or '<µs>' since the epoch; a past time means now. With a
--              leading '=', the event is put behind those due in that millisecond. With
--              ',<max_wait>' at the end, it is due at most <max_wait> µs after its wait began:
--              with the first post of its id that found no event waiting for its first start
--     body     as in parts/format.lua; <expires> may also be '+<µs>' from now
--
-- Returns   '<letters>;<posted>;<id>'
--   letters one character per event: 1 stored, 0 not stored because an existing one was kept. Or a
--           single x: nothing was stored because `id` exists already
--   posted  how many events were ever posted, including these; '' if nothing was stored now
local done, stale = recall()
if stale then return stale end
local letters, id = string.match(done or '', '^(%w*);(.*)$')
if letters then
  -- Write the result again on the connection of this attempt, because WAIT counts from the last
  -- write of its own connection. Redis allows an HDEL when it is out of memory, and then the HSET
  -- too.
  redis.call('HDEL', MEMO_A, '')
  remember(done)
  return letters .. ';;' .. id
end

local wrong = check_types(DUE, BODY, LEASE, TRIES, DEAD, DIED, SYS)
if wrong then return wrong end

-- Return a time in the millisecond that begins at `when`, after all events that are due in it. If
-- its last microsecond is taken, use the next millisecond, and so on, at most 20 times.
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

-- Return the time that an argument `when` states.
local function moment(text)
  if string.sub(text, 1, 1) == '+' then return NOW + tonumber(string.sub(text, 2)) end
  return tonumber(text)
end

-- Return whether an event with this id exists and, if it waits, when it is due.
local function existing(id)
  local score = redis.call('ZSCORE', DUE, id)
  if not score then return false end
  local token, _, _, cancelled = parse_lease(redis.call('HGET', LEASE, id))
  -- An event that was cancelled in flight counts as gone, because it is not retried.
  if cancelled then return false end
  return true, not token and tonumber(score)
end

-- Return when the wait began to which a post of this id with max_wait belongs.
local function wait_began(id)
  local waits = redis.call('ZSCORE', DUE, id)
    and not parse_lease(redis.call('HGET', LEASE, id))
    and not redis.call('HGET', TRIES, id)
  local first = waits and first_of(redis.call('HGET', BODY, id))
  -- The clock may have been set back since. Then the limit counts from now, or it would be later by
  -- as much as the clock was set back.
  return first and math.min(first, NOW) or NOW
end

local scores, bodies, ids, letters = {}, {}, {}, {}
local earliest_posted, due_now = math.huge, 0
for i = events, #ARGV, 3 do
  local id = ARGV[i]
  local behind, text, max_wait = string.match(ARGV[i + 1], '^(=?)([^,]*),?(%d*)$')
  local when, body = math.max(moment(text), NOW), posted_body(ARGV[i + 2])
  if max_wait ~= '' then
    local first = wait_began(id)
    when = math.max(math.min(when, first + tonumber(max_wait)), NOW)
    body = with_first(body, first)
  end
  if behind == '=' then when = in_line(when) end
  local keep = false
  if policy ~= 'replace' then
    local exists, due = existing(id)
    if exists and policy == 'error' then
      remember('x;' .. id)
      return 'x;;' .. id
    end
    -- An event in flight has no due time to compare. It is replaced, or this post would be lost
    -- when its handler returns.
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
    bodies[#bodies + 1] = body
    earliest_posted = math.min(earliest_posted, when)
    if when <= NOW then due_now = due_now + 1 end
  end
end

local posted = ''
if #ids > 0 then
  -- EXPECTED has the time at which the node on duty claims the event that was earliest. If this
  -- post has moved that event to a later time, the claim finds nothing, and the node waits again.
  local earliest = math.min(first_due() or math.huge, earliest_posted)
  local wakes = earliest_posted == earliest or due_now > 0
  wrong = wakes and check_types(ROSTER, EXPECTED)
  if wrong then return wrong end
  -- Begin with a write that Redis refuses when it is out of memory, so nothing is half stored.
  local added = redis.call('ZADD', DUE, unpack(scores))
  redis.call('HSET', BODY, unpack(bodies))
  if added < #ids then
    redis.call('HDEL', LEASE, unpack(ids))
    redis.call('HDEL', TRIES, unpack(ids))
    count('superseded', #ids - added)
  end
  if redis.call('HDEL', DEAD, unpack(ids)) > 0 then
    redis.call('ZREM', DIED, unpack(ids))
  end
  posted = count('posted', #ids)
  if wakes then wake_next(earliest, due_now) end
end
letters = table.concat(letters)
remember(letters .. ';')
return letters .. ';' .. posted .. ';'
