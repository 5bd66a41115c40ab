-- One turn of a node: settle what it has finished, lease it what is due, and tell it when
-- to ask again. Deciding that nobody else will come for the next event is part of it.
--
-- Uses      guard memo rouse events again plan settle
--
-- ARGV[3]   the node's incarnation
-- ARGV[4]   limit: how many events its free hands can start; 0 claims nothing
-- ARGV[5]   lease length in µs
-- ARGV[6]   'h' when the node hears wakes, 'e' to be sent an echo, 'p' to be told how many
--           events were ever posted; together or ''. And how often this very turn was asked
--           for before, when it was
-- ARGV[7]   when this node was last heard of, as it was told by its last turn; '' when it
--           does not know
-- ARGV[8]   number of confirmed events
-- ARGV[9]   number of events settled in other ways
-- ARGV[10]  and on: those events, as parts/settle.lua reads them
--
-- Returns   {head, claim, ..., id, reason, ..., schedule, ...}
--   head    'now;wait;known;results;heard;before;posted;<number of claims>;<number of buried>'
--   claim   '<token>,<attempt>,<due>,<length of id>|<id><body>', one for each claimed event
--   id      of each event found unfit in turn, and the reason
--   schedule  those that run out of nominal times
-- where
--   wait    µs until it is worth asking again; -1 when only a wake or the poll will tell
--   known   1 when the node was registered; 0 asks it to register again, and so does
--           a schema of another version
--   results one letter per settled event, in their order (parts/settle.lua)
--   heard   when this node was last heard of, for its next turn
--   before  when it was heard of before this turn, where it is not ARGV[7]: 0 for never; else ''
--   posted  the total, or ''
local FEW, MOST_BYTES, LATEST = 10, 1000000, 80
local node, limit, lease, flags = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local hears = string.find(flags, 'h', 1, true)
local asked = tonumber(string.match(flags, '%d+') or 0)

local done, stale = recall()
if stale then return stale end
local answer = done and answer_again(done)
if answer then return answer end

local busy = tonumber(ARGV[8]) + tonumber(ARGV[9]) > 0
local earliest = not busy and first_due()
if busy or (earliest and earliest <= NOW) then
  local wrong = guard(BODY, LEASE, TRIES, DEAD, GRAVES, SYS, ALIVE, ROSTER, PLANS, BEATS)
  if wrong then return wrong end
end

local now = digits(NOW)
redis.call('ZREM', PROMISE, node)
-- What the node was told last is what has to be there: a server that has forgotten this
-- turn's predecessor has forgotten what came after it, too (docs/decisions/10-rollbacks).
-- To add the difference shows both, in the one command that it takes anyway.
local before = ''
local heard = tonumber(ARGV[7])
if heard then
  local found = tonumber(redis.call('ZADD', ALIVE, 'INCR', digits(NOW - heard), node))
  if found ~= NOW then before = digits(math.max(0, found - (NOW - heard))) end
end
if not heard or before ~= '' then redis.call('ZADD', ALIVE, now, node) end
local known = redis.call('HEXISTS', NODES, node) == 1
local results = ''
if busy then
  results = settle(10, tonumber(ARGV[8]), tonumber(ARGV[9]))
  earliest = first_due()
end
if string.find(flags, 'e', 1, true) then
  tell('echo', node)
end

local paused, last_token = false, 0
local due = {}
-- How many are due and will be left; nil where nobody has counted them.
local left, told = 0, 0
if earliest and earliest <= NOW then
  local says, version, token = unpack(redis.call('HMGET', SYS, 'paused', 'v', 'token'))
  -- What another version of dtimer keeps here is not for this one to hand out. To register
  -- is refused with the reason.
  local foreign = version and version ~= SCHEMA
  known = known and not foreign
  paused, last_token = foreign or says == '1', tonumber(token or '0') or 0
  left = nil
  if limit > 0 and not paused then
    due = redis.call('ZRANGEBYSCORE', DUE, '-inf', now, 'WITHSCORES', 'LIMIT', 0, limit)
    -- Nodes that have been told to come get an event each, so that work is shared and a
    -- quick node does not run away with all of it.
    told = redis.call('ZCOUNT', PROMISE, digits(NOW - GRACE), now)
    if told > 0 then
      left = redis.call('ZCOUNT', DUE, '-inf', now)
      while #due > 0 and #due / 2 > left - told do
        due[#due] = nil
        due[#due] = nil
      end
    elseif #due / 2 < limit then
      left = #due / 2
    end
  end
end

local reply, buried, short, ids, taken = {''}, {}, {}, {}, 0
local first_token, spoiled = 0, 0
-- What is remembered of this turn: the ids, so written that a foreign one may hold anything.
local given = {}
if #due > 0 then
  for i = 1, #due, 2 do ids[#ids + 1] = due[i] end
  -- A few at a time, and no more when it is much: large payloads take long.
  local bodies, bytes = {}, 0
  for first = 1, #ids, FEW do
    local last = math.min(first + FEW - 1, #ids)
    for i, body in ipairs(redis.call('HMGET', BODY, unpack(ids, first, last))) do
      bodies[first + i - 1] = body
      bytes = bytes + #(body or '')
    end
    if bytes > MOST_BYTES then
      for i = #ids, last + 1, -1 do ids[i] = nil end
      break
    end
  end
  local leases = redis.call('HMGET', LEASE, unpack(ids))
  local tries = redis.call('HMGET', TRIES, unpack(ids))
  if last_token > 9e15 then last_token = 0 end
  first_token = math.max(last_token + 1, NOW)
  local token = first_token
  local lease_end = digits(NOW + lease)
  local scores, held, tried, lateness = {}, {}, {}, {}
  for i, id in ipairs(ids) do
    local occurs = bodies[i] and string.find(bodies[i], '^%d*,%d+,s%d')
    local flags, waits = occurs and 's' or '', false
    local expires, max_retries = parse_body(bodies[i])
    local last, attempt, _, cancelled, whose, marks = parse_lease(leases[i])
    if not last then
      attempt = tries[i] and tonumber(string.match(tries[i], '^%d%d?%d?%d?%d?%d?%d?$')) or 0
    end
    local unfit, why = nil, ''
    if not bodies[i] then
      unfit = 'payload_missing'
    elseif not max_retries or not string.find(due[2 * i], '^%d+$') or #bodies[i] > MOST_BODY then
      unfit = 'corrupt'
    elseif last and attempt > max_retries then
      unfit, why = 'lease_lost', 'the lease of node ' .. string.sub(whose, 1, 255) .. ' ran out'
    elseif expires and expires <= NOW then
      unfit = 'expired'
    end
    if occurs and not (last or cancelled or unfit) then
      local starts, missed = plan().meet(id)
      waits = not starts
      if missed and missed > 0 then
        bodies[i] = string.gsub(bodies[i], '^(%d*,%d+,s%d+),%d+', '%1,' .. digits(missed), 1)
        redis.call('HSET', BODY, id, bodies[i])
      end
    end
    if occurs then
      local schedule = plan().named_by(id)
      if schedule and plan().is_short(schedule) then short[#short + 1] = schedule end
    end
    if waits then
      -- Moved or dropped by its schedule.
      flags = ''
    elseif cancelled then
      remove(id)
      count('cancelled', 1)
    elseif unfit then
      bury(id, attempt, unfit, why)
      buried[#buried + 1] = id
      buried[#buried + 1] = unfit
    else
      if tries[i] then tried[#tried + 1] = id end
      -- Digits throughout: to let Lua write a number costs as much as half a command.
      local mark = digits(token) .. ',' .. digits(attempt + 1) .. ',' .. due[2 * i] .. ','
      local length = digits(#id)
      scores[#scores + 1] = lease_end
      scores[#scores + 1] = id
      held[#held + 1] = id
      held[#held + 1] = mark .. flags .. ',' .. node
      reply[#reply + 1] = mark .. length .. '|' .. id .. bodies[i]
      given[#given + 1] = length .. ':' .. id
      -- Two buckets to each doubling of the lateness in µs (dtimer/model/lateness.py).
      local late = math.floor(2 * math.log(NOW - due[2 * i] + 1) / math.log(2))
      late = math.min(LATEST, late)
      lateness[late] = (lateness[late] or 0) + 1
      taken = taken + 1
      token = token + 1
    end
    if (cancelled or unfit) and string.find(marks or '', 's', 1, true) then plan().ended(id) end
  end
  if taken > 0 then
    redis.call('ZADD', DUE, unpack(scores))
    redis.call('HSET', LEASE, unpack(held))
    if #tried > 0 then redis.call('HDEL', TRIES, unpack(tried)) end
    redis.call('HSET', SYS, 'token', digits(token - 1))
    count('started', taken)
    for bucket, n in pairs(lateness) do count('late:' .. bucket, n) end
  end
  left = left and left - #ids
  spoiled = #ids - taken
end

-- The roster: those with free hands, who took work at the tail.
local free = limit - taken
if free > 0 and hears then
  if taken > 0 then
    redis.call('ZADD', ROSTER, now, node)
  else
    redis.call('ZADD', ROSTER, 'NX', now, node)
  end
else
  redis.call('ZREM', ROSTER, node)
end

local wait = -1
local head = earliest and not paused and redis.call('ZRANGE', ROSTER, 0, 0)[1]
if #ids > 0 and (head or free > 0) then earliest = first_due() end
-- There is more, and it is kept for nobody: what was unfit took the place of what is not, the
-- claims had grown large, or an occurrence was followed by one that is due as well.
local again = free > 0 and earliest and earliest <= NOW and (spoiled > 0 or told == 0)
if earliest and not paused then
  if head == node then
    -- On duty. When events are due and yet left, they are kept for others who were told.
    wait = again and 0 or earliest > NOW and earliest - NOW or GRACE
    redis.call('ZADD', PROMISE, digits(NOW + wait), node)
  elseif head then
    left = left or redis.call('ZCOUNT', DUE, '-inf', now)
    rouse(earliest, left)
    if left > 0 and free > 0 then wait = GRACE end
  elseif free > 0 then
    -- Nobody hears: each node that asks is its own alarm clock.
    wait = math.max(0, earliest - NOW)
  end
  if again then wait = 0 end
end

for _, text in ipairs(buried) do
  reply[#reply + 1] = text
  given[#given + 1] = #text .. ':' .. text
end
for _, schedule in ipairs(short) do reply[#reply + 1] = schedule end
remember(table.concat(
  {results, before, digits(asked), digits(first_token), digits(taken), table.concat(given)}, ';'))
local posted = ''
if string.find(flags, 'p', 1, true) then
  posted = string.match(redis.call('HGET', SYS, 'n:posted') or '0', '^%d+$') or ''
end
reply[1] = table.concat(
  {now, digits(wait), known and '1' or '0', results, now, before, posted, digits(taken),
   digits(#buried / 2)}, ';')
return reply
