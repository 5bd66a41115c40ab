-- One turn of a node: settle what it has finished, lease it what is due, and tell it when
-- to ask again. Deciding that nobody else will come for the next event is part of it.
--
-- Uses      guard memo rouse events again plan settle
--
-- ARGV[3]   the node's incarnation
-- ARGV[4]   limit: how many events its free hands can start; 0 claims nothing
-- ARGV[5]   lease length in µs
-- ARGV[6]   'h' when the node hears wakes, 'e' to be sent an echo, 'p' to be told how many
--           events were ever posted; together or ''. How often this very turn was asked
--           for before, when it was. And ',<bytes>' for a node with a slow connection: all
--           bodies after the first fit into so many bytes, 1000000 when it is not given; with a
--           '!' behind it the first does, too, and larger ones are passed over
-- ARGV[7]   when this node was last heard of, as it was told by its last turn; '' when it
--           does not know
-- ARGV[8]   how far ahead it claims, in µs: what falls due in that time is handed out as well,
--           and the node keeps it until it is due
-- ARGV[9]   number of confirmed events
-- ARGV[10]  number of events settled in other ways
-- ARGV[11]  and on: those events, as parts/settle.lua reads them
--
-- Returns   '<head>|<claim>...<text>...', one string, because each element of a reply costs a
--           client as much as an event's payload does
--   head    'now;wait;known;results;heard;before;posted;<claims>;<buried>;<short>'
--   claim   '<token>,<attempt>,<due>,<length of id>,<length of body>|<id><body>', one for each
--           claimed event
--   text    '<length>:<text>': of each event found unfit the id and the reason in turn, then
--           the schedules that run out of nominal times
-- where
--   wait    µs until it is worth asking again; -1 when only a wake or the poll will tell
--   known   1 when the node was registered; 0 asks it to register again, and so does
--           a schema of another version
--   results one letter per settled event, in their order (parts/settle.lua)
--   heard   when this node was last heard of, for its next turn
--   before  when it was heard of before this turn, where it is not ARGV[7]: 0 for never; else ''
--   posted  the total, or ''
local MOST_BYTES, MOST_PASSED, LATEST = 1000000, 100, 80
local node, limit, lease, flags = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local ahead, confirms, others = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local hears, echo, curious, asked, most, strict = flags == 'h', false, false, 0, MOST_BYTES, false
if not hears and flags ~= '' then
  hears = string.find(flags, 'h', 1, true)
  echo = string.find(flags, 'e', 1, true)
  curious = string.find(flags, 'p', 1, true)
  asked = tonumber(string.match(flags, '^%a*(%d+)') or 0)
  if #flags > 3 then
    most = tonumber(string.match(flags, ',(%d+)') or most)
    strict = string.find(flags, '!', 1, true)
  end
end

-- What makes an event unfit to be handed out, or nil.
local function fault_of(body, score, max_retries, holder, attempt, expires)
  if not body then return 'payload_missing', '' end
  if not max_retries or not string.find(score, '^%d+$') or #body > MOST_BODY then
    return 'corrupt', ''
  end
  if holder and attempt > max_retries then
    return 'lease_lost', 'the lease of node ' .. string.sub(holder, 1, 255) .. ' ran out'
  end
  if expires and expires <= NOW then return 'expired', '' end
end

-- What is due by the horizon and small enough to be received: at most `limit` ids and scores.
local function fitting(horizon, limit, most)
  local found, due = {}, redis.call('ZRANGEBYSCORE', DUE, '-inf', horizon, 'WITHSCORES',
    'LIMIT', '0', digits(limit + MOST_PASSED))
  for i = 1, #due, 2 do
    if #found < 2 * limit and redis.call('HSTRLEN', BODY, due[i]) <= most then
      found[#found + 1] = due[i]
      found[#found + 1] = due[i + 1]
    end
  end
  return found
end

-- Once the settlements are done: their results, and as `before` of the reply says.
local settled, was

-- No key is asked for its type: each is read, or soft, before anything is claimed. What is settled
-- before that is remembered. DEAD, GRAVES, PLANS and BEATS are looked at when they are needed,
-- which is seldom.
local function take_turn()
  local done, stale = recall()
  if stale then return stale end
  local answer = done and answer_again(done)
  if answer then return answer end

  local now = digits(NOW)
  local first, second = unpack(redis.call('ZRANGE', ROSTER, '0', '1'))
  -- Redis allows this when it is out of memory, and with it what follows.
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
  local busy = confirms + others > 0
  local results = ''
  if busy then
    local wrong
    results, wrong = settle(11, confirms, others)
    if wrong then return wrong end
    settled, was = results, before
  end
  if echo then tell('echo', node) end

  -- One more than a single hand takes, to know what comes after it.
  local top = redis.call('ZRANGE', DUE, '0', limit > 0 and '1' or '0', 'WITHSCORES')
  local earliest = soonest(top[2])
  local horizon = digits(NOW + ahead)
  local paused, last_token = false, 0
  local due = {}
  -- How many are due by the horizon and will be left; nil where nobody has counted them.
  local left, told = 0, 0
  if earliest and earliest <= NOW + ahead then
    local says, version, token = unpack(redis.call('HMGET', SYS, 'paused', 'v', 'token'))
    -- What another version of dtimer keeps here is not for this one to hand out. To register
    -- is refused with the reason.
    local foreign = version and version ~= SCHEMA
    known = known and not foreign
    paused, last_token = foreign or says == '1', tonumber(token or '0') or 0
    left = nil
    if limit > 0 and not paused then
      due = limit == 1 and {top[1], top[2]}
        or redis.call('ZRANGEBYSCORE', DUE, '-inf', horizon, 'WITHSCORES', 'LIMIT', '0', ARGV[4])
      -- Nodes that have been told to come get an event each, so that work is shared and a
      -- quick node does not run away with all of it.
      told = redis.call('ZCOUNT', PROMISE, digits(NOW - GRACE), now)
      if told > 0 then
        -- Only registered ones: for strangers among the promises events would be kept for ever.
        local names = redis.call(
          'ZRANGEBYSCORE', PROMISE, digits(NOW - GRACE), now, 'LIMIT', '0', '100')
        told = 0
        for _, who in ipairs(redis.call('HMGET', NODES, unpack(names))) do
          if who then told = told + 1 end
        end
        left = redis.call('ZCOUNT', DUE, '-inf', horizon)
        while #due > 0 and #due / 2 > left - told do
          due[#due] = nil
          due[#due] = nil
        end
      elseif #due / 2 < limit then
        left = #due / 2
      end
      if strict then
        -- Those that would not get through are left for others, who are told of them.
        due, left = fitting(horizon, limit, most), redis.call('ZCOUNT', DUE, '-inf', horizon)
        most = math.min(most, MOST_BYTES)
      end
    end
  end

  local reply, buried, short, ids = {''}, {}, {}, {}
  -- How many were claimed; of these, before they are due; how many were left until they are.
  local taken, held_back, early = 0, 0, 0
  local first_token, trouble, checked, occurred = 0, nil, false, false
  -- What is remembered of this turn: the ids, so written that a foreign one may hold anything.
  local given = {}
  if #due > 0 then
    for i = 1, #due, 2 do ids[#ids + 1] = due[i] end
    -- Each is measured before it is loaded, because a payload may be of any size: the first is
    -- always handed out, and of the others what the bytes allow.
    local bodies, bytes
    if #ids == 1 then
      bodies = redis.call('HMGET', BODY, ids[1])
    else
      bytes = 0
      for i, id in ipairs(ids) do
        bytes = bytes + redis.call('HSTRLEN', BODY, id)
        if bytes > most and i > 1 then
          for last = #ids, i, -1 do ids[last] = nil end
          break
        end
      end
      bodies = redis.call('HMGET', BODY, unpack(ids))
    end
    local leases = redis.call('HMGET', LEASE, unpack(ids))
    local tries = redis.call('HMGET', TRIES, unpack(ids))
    if last_token > 9e15 then last_token = 0 end
    first_token = math.max(last_token + 1, NOW)
    local token = first_token
    local lease_end = digits(NOW + lease)
    local scores, held, tried, lateness = {}, {}, {}, {}
    for i, id in ipairs(ids) do
      local body, score = bodies[i], due[2 * i]
      if occurred then
        -- A schedule may just have put another occurrence in the place of this event.
        score = redis.call('ZSCORE', DUE, id) or 'inf'
        body, leases[i] = redis.call('HGET', BODY, id), redis.call('HGET', LEASE, id)
        tries[i] = redis.call('HGET', TRIES, id)
      end
      local expires, max_retries, mark = parse_body(body)
      local occurs = mark == 's'
      local last, attempt, _, cancelled, whose, marks
      if leases[i] then
        last, attempt, _, cancelled, whose, marks = parse_lease(leases[i])
      end
      if not last then
        attempt = tries[i] and tonumber(string.match(tries[i], '^%d%d?%d?%d?%d?%d?%d?$')) or 0
      end
      local unfit, why = fault_of(body, score, max_retries, last and whose, attempt, expires)
      local at = tonumber(score)
      -- Ahead of its time only what is simply to be handed out then: the end of a lease, of a
      -- life or of an interval is to be judged when it has come, and what has a name of the
      -- user's may be replaced by him until then.
      local leave = at > NOW
        and (at > NOW + ahead or last or mark or unfit or (expires and expires <= at))
      if leave then
        held_back = held_back + 1
      elseif occurs or unfit or cancelled then
        if not checked then trouble = guard(DEAD, GRAVES, PLANS, BEATS) end
        checked, leave = true, trouble
      end
      local waits = false
      if occurs and not leave then
        occurred = true
        if not (last or cancelled or unfit) then
          local starts, missed = plan().meet(id)
          waits = not starts
          if missed and missed > 0 then
            body = string.gsub(body, '^(%d*,%d+,s%d+),%d+', '%1,' .. digits(missed), 1)
            redis.call('HSET', BODY, id, body)
          end
        end
        local schedule = plan().named_by(id)
        if schedule and plan().is_short(schedule) then short[#short + 1] = schedule end
      end
      -- Those that wait were moved or dropped by their schedule.
      if not (leave or waits) then
        if cancelled then
          remove(id)
          count('cancelled', 1)
        elseif unfit then
          bury(id, attempt, unfit, why)
          buried[#buried + 1] = id
          buried[#buried + 1] = unfit
        else
          if tries[i] then tried[#tried + 1] = id end
          -- Digits throughout: to let Lua write a number costs as much as half a command.
          local mark = digits(token) .. ',' .. digits(attempt + 1) .. ',' .. score .. ','
          local length = digits(#id)
          scores[#scores + 1] = lease_end
          scores[#scores + 1] = id
          held[#held + 1] = id
          held[#held + 1] = mark .. (occurs and 's,' or ',') .. node
          reply[#reply + 1] = mark .. length .. ',' .. digits(#body) .. '|' .. id .. body
          given[#given + 1] = length .. ':' .. id
          if at > NOW then
            early = early + 1
            at = NOW
          end
          -- Two buckets to each doubling of the lateness in µs (dtimer/model/lateness.py).
          local late = math.min(LATEST, math.floor(2 * math.log(NOW - at + 1) / math.log(2)))
          lateness[late] = (lateness[late] or 0) + 1
          taken = taken + 1
          token = token + 1
        end
        if (cancelled or unfit) and string.find(marks or '', 's', 1, true) then plan().ended(id) end
      end
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
  end
  if trouble and not busy and taken == 0 then return trouble end

  -- The roster: those with free hands, who took work at the tail. Where nobody else is on it,
  -- a node that claimed ahead stays: its hands are free until then.
  local free = limit - taken
  local alone = (not first or first == node) and (not second or second == node)
  local reserve = free <= 0 and early > 0 and alone
  local waiting = hears and (free > 0 or reserve)
  local listed = first == node or second == node
  local head
  if waiting then
    if taken > 0 then
      redis.call('ZADD', ROSTER, now, node)
      head = first ~= node and first or second ~= node and second or node
    else
      if not listed then redis.call('ZADD', ROSTER, 'NX', now, node) end
      head = first or node
    end
  else
    if listed or second then redis.call('ZREM', ROSTER, node) end
    head = first ~= node and first or second
  end

  local wait = -1
  if #ids > 0 and (head or free > 0) then
    if limit == 1 and taken == 1 and not occurred and not strict then
      earliest = soonest(math.min(soonest(top[4]) or math.huge, NOW + lease))
    else
      earliest = first_due()
    end
  end
  -- There is more, and it is kept for nobody: what was unfit took the place of what is not, the
  -- claims had grown large, or an occurrence was followed by one that is due as well.
  local again = free > 0 and earliest and earliest <= NOW
    and (#ids > taken + held_back or told == 0) and not (strict and taken == 0)
  if earliest and not paused then
    -- Half of what it may claim ahead, so that it is in time for all of that. What is in sight
    -- and was left is to be asked for when it is due.
    local lead = reserve and 0 or math.floor(ahead / 2)
    local coming = earliest - NOW > lead and earliest - NOW - lead or earliest - NOW
    if head == node then
      -- On duty. When events are due and yet left, they are kept for others who were told.
      wait = again and 0 or earliest > NOW and coming or GRACE
      redis.call('ZADD', PROMISE, digits(NOW + wait), node)
    elseif head then
      left = left or redis.call('ZCOUNT', DUE, '-inf', horizon)
      rouse(earliest, left)
      if left > 0 and free > 0 then wait = GRACE end
    elseif free > 0 then
      -- Nobody hears: each node that asks is its own alarm clock.
      wait = math.max(strict and GRACE or 0, coming)
    end
    if again or trouble then wait = 0 end
  end

  for _, text in ipairs(buried) do
    text = digits(#text) .. ':' .. text
    reply[#reply + 1] = text
    given[#given + 1] = text
  end
  for _, schedule in ipairs(short) do reply[#reply + 1] = digits(#schedule) .. ':' .. schedule end
  remember(table.concat(
    {results, before, digits(asked), digits(first_token), digits(taken), table.concat(given)}, ';'))
  local posted = ''
  if curious then
    posted = string.match(redis.call('HGET', SYS, 'n:posted') or '0', '^%d+$') or ''
  end
  reply[1] = table.concat(
    {now, digits(wait), known and '1' or '0', results, now, before, posted, digits(taken),
     digits(#buried / 2), digits(#short)}, ';') .. '|'
  return table.concat(reply)
end

-- What was settled is not settled again where the claims have failed: asked again, the turn tells
-- of it, and the next one of the failure.
local function failed()
  if settled then
    remember(table.concat({settled, was, digits(asked), '0', '0', ''}, ';'))
  end
end

return named(take_turn, failed)
