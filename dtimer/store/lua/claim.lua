-- Serve one claim of a node: settle the events it has finished, lease it due events, and say when
-- it should claim again. To do so, the script decides which node is on duty for the next event.
--
-- Kind      once
-- Roles     node
-- Uses      guard session rouse events replay plan settle
-- Commands  hdel hexists hget hmget hset hstrlen zadd zcount zrange zrangebyscore zrem zscore
--
-- Arguments
--   node            its incarnation
--   limit           number: how many events its free handler threads can start; 0 claims nothing
--   lease           number: lease length in µs
--   flags           '' or, in this order, any of
--     h             the node can hear wakes
--     e             publish an echo to the node
--     <number>      how many times this claim was sent before
--     ,<bytes>      for a slow connection: how many bytes of bodies to return at most, 1000000 if
--                   not given. The first event is returned even if it is larger
--     !             a strict claim: skip every event that is larger than that limit
--     p             return how many events were ever posted
--   heard           `heard` in the reply to this node's last claim: the time of that claim. '' if
--                   the node does not know it
--   ahead           number: look-ahead in µs: events that fall due within it are claimed too, and
--                   the node keeps them until they are due
--   confirms        number: how many events are confirmed
--   others          number: how many events are settled in other ways
--   settlements...  these events, in the format of parts/settle.lua
--
-- Returns   '<head>|<claim>...<text>...', one string, because a client spends as much on each
--           element of a reply as on the payload of an event
--   head    'now;wait;known;results;heard;before;posted;<claims>;<buried>;<short>'
--   claim   '<token>,<attempt>,<due>,<length of id>,<length of body>|<id><body>' for each
--           leased event
--   text    '<length>:<text>': id and reason of each event that was buried, then each schedule
--           that runs short of nominal times
-- where
--   wait    µs until the node should claim again; -1 if it should wait for a wake or its poll
--   known   1 if the node is registered; 0 if it must register again, also because the
--           namespace has the schema of another version
--   results one letter per settled event, in order (parts/settle.lua)
--   heard   the server's time of this claim, for the argument `heard` of this node's next claim
--   before  '' if the server had recorded the time in the argument `heard`, or if that is ''.
--           Else the time
--           that it had recorded, 0 for none
--   posted  how many events were ever posted; '' if not requested
--   claims, buried, short  how many of each follow

-- The default limit of bytes, how many events a strict claim may skip, and the last bucket of the
-- histogram of lateness.
local MOST_BYTES, MOST_PASSED, LATEST = 1000000, 100, 80
-- From flags: `curious` is the flag p, and `asked` is how many times this claim was sent before.
local hears, echo, curious, asked, most, strict = flags == 'h', false, false, 0, MOST_BYTES, false
if not hears and flags ~= '' then
  hears = string.find(flags, 'h', 1, true)
  echo = string.find(flags, 'e', 1, true)
  curious = string.find(flags, 'p', 1, true)
  asked = tonumber(string.match(flags, '^%a*(%d+)') or 0)
  if #flags > 3 then
    most = tonumber(string.match(flags, ',(%d+)') or most)
    strict = string.find(flags, '!', 1, true)
    -- A strict claim keeps a limit above the default until `fitting` has chosen its events.
    if not strict then most = math.min(most, MOST_BYTES) end
  end
end

-- Return why an event must be buried, as a reason and an error text; nil if it may start.
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

-- Return ids and scores of at most `limit` events that are due by the horizon and that have at
-- most `most` bytes. Leave `kept` events for other nodes. The second result is how many are due.
local function fitting(horizon, limit, most, kept)
  local left = redis.call('ZCOUNT', DUE, '-inf', horizon)
  local found, due = {}, redis.call('ZRANGEBYSCORE', DUE, '-inf', horizon, 'WITHSCORES',
    'LIMIT', '0', digits(limit + MOST_PASSED))
  for i = 1, #due, 2 do
    if #found < 2 * math.min(limit, left - kept) and redis.call('HSTRLEN', BODY, due[i]) <= most then
      found[#found + 1] = due[i]
      found[#found + 1] = due[i + 1]
    end
  end
  return found, left
end

-- When the settlements are done: their results, and the value of `before` in the reply.
local settled, was

-- The types of the keys are not checked first. Each key is read, or receives a harmless write,
-- before any event is claimed, so a wrong type makes the claim fail in time. Settlements made
-- before such a failure are remembered. DEAD, GRAVES, PLANS and BEATS are checked when they are
-- needed, which is rare.
local function take_turn()
  local done, stale = recall()
  if stale then return stale end
  local answer = done and answer_again(done, node, lease, flags, heard)
  if answer then return answer end

  local now = digits(NOW)
  local first, second = unpack(redis.call('ZRANGE', ROSTER, '0', '1'))
  -- This ZREM comes first on purpose. Redis allows it when it is out of memory, and then allows all
  -- later writes of the script.
  redis.call('ZREM', PROMISE, node)
  -- Detect a rollback: ALIVE must still have the time of this node's previous claim, `heard`. If
  -- that write is lost, all later writes are lost too (docs/decisions/10-rollbacks). ZADD INCR adds
  -- NOW - heard to the stored time. The sum is NOW if the stored time is `heard`, so one command
  -- both checks the time and updates it.
  local before = ''
  local last = tonumber(heard)
  if last then
    local found = tonumber(redis.call('ZADD', ALIVE, 'INCR', digits(NOW - last), node))
    if found ~= NOW then before = digits(math.max(0, found - (NOW - last))) end
  end
  if not last or before ~= '' then redis.call('ZADD', ALIVE, now, node) end
  local known = redis.call('HEXISTS', NODES, node) == 1
  local busy = confirms + others > 0
  local results = ''
  if busy then
    local wrong
    results, wrong = settle(settlements, confirms, others)
    if wrong then return wrong end
    settled, was = results, before
  end
  if echo then tell('echo', node) end

  -- A node with one free handler thread claims one event. Read two, because the second tells when
  -- the next event is due.
  local top = redis.call('ZRANGE', DUE, '0', limit > 0 and '1' or '0', 'WITHSCORES')
  local earliest = soonest(top[2])
  local horizon = digits(NOW + ahead)
  local paused, last_token = false, 0
  local due = {}
  -- `left` is how many events are due by the horizon and stay unclaimed, nil if not counted.
  -- `told` is how many other nodes are expected to claim now, by PROMISE.
  local left, told = 0, 0
  if earliest and earliest <= NOW + ahead then
    local says, version, token = unpack(redis.call('HMGET', SYS, 'paused', 'v', 'token'))
    -- Events that another version of dtimer has stored are not claimed. The node tries to
    -- register again, and that is refused with the reason.
    local foreign = version and version ~= SCHEMA
    known = known and not foreign
    paused, last_token = foreign or says == '1', tonumber(token or '0') or 0
    left = nil
    if limit > 0 and not paused then
      due = limit == 1 and {top[1], top[2]}
        or redis.call('ZRANGEBYSCORE', DUE, '-inf', horizon, 'WITHSCORES', 'LIMIT', '0', digits(limit))
      -- Keep one event for each node that is expected to claim now. Otherwise a fast node would
      -- take all of the work.
      told = redis.call('ZCOUNT', PROMISE, digits(NOW - GRACE), now)
      if told > 0 then
        -- Count registered nodes only. Otherwise events would be kept for ever for names in
        -- PROMISE that dtimer has not written.
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
        -- Events that this node cannot receive are left for other nodes, which are told about
        -- them.
        due, left = fitting(horizon, limit, most, told)
        most = math.min(most, MOST_BYTES)
      end
    end
  end

  local reply, buried, short, ids = {''}, {}, {}, {}
  -- How many events were claimed, were left until they are due, and were claimed early.
  local taken, held_back, early = 0, 0, 0
  -- `trouble` is an error reply if a key that an event needs has the wrong type. `occurred` is true
  -- once an occurrence was claimed, moved or dropped.
  local first_token, trouble, checked, occurred = 0, nil, false, false
  -- The ids to remember for this claim, each with its length, because an id that dtimer has not
  -- written may contain any byte.
  local given = {}
  if #due > 0 then
    for i = 1, #due, 2 do ids[#ids + 1] = due[i] end
    -- Measure each body before loading it, because a payload may be of any size. The first is
    -- always loaded, and the others while the total stays within the limit.
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
    -- No token of dtimer is as high as this. Above about 9e15, Lua cannot count in steps of one.
    if last_token > 9e15 then last_token = 0 end
    first_token = math.max(last_token + 1, NOW)
    local token = first_token
    local lease_end = digits(NOW + lease)
    local scores, held, tried, lateness = {}, {}, {}, {}
    for i, id in ipairs(ids) do
      local body, score = bodies[i], due[2 * i]
      if occurred then
        -- An occurrence earlier in this batch may just have replaced this event. Read it again.
        score = redis.call('ZSCORE', DUE, id) or 'inf'
        body, leases[i] = redis.call('HGET', BODY, id), redis.call('HGET', LEASE, id)
        tries[i] = redis.call('HGET', TRIES, id)
      end
      local expires, max_retries, mark = parse_body(body)
      local occurs = mark == 's'
      local last, attempt, _, cancelled, whose, marks
      -- `last` is the token of the expired lease, if there is one; `marks` are the lease's flags.
      if leases[i] then
        last, attempt, _, cancelled, whose, marks = parse_lease(leases[i])
      end
      if not last then
        attempt = tries[i] and tonumber(string.match(tries[i], '^%d%d?%d?%d?%d?%d?%d?$')) or 0
      end
      local unfit, why = fault_of(body, score, max_retries, last and whose, attempt, expires)
      local at = tonumber(score)
      -- Claim ahead only events that will simply start when they are due. An expired lease, an
      -- expiry and an occurrence must be judged at their time. An event whose id the user chose
      -- may be replaced until then.
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
          -- `meet` decides whether the occurrence starts now. If not, it has moved or removed it.
          local starts
          starts, body = plan().meet(id, body)
          waits = not starts
        end
        local schedule = plan().named_by(id)
        if schedule and plan().is_short(schedule) then short[#short + 1] = schedule end
      end
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
          -- The head of the new lease, which the reply repeats. Format numbers with `digits`,
          -- because a conversion by Lua takes half as long as a Redis command.
          local text, mark = write_lease(
            digits(token), digits(attempt + 1), score, occurs and 's' or '', node)
          local length = digits(#id)
          scores[#scores + 1] = lease_end
          scores[#scores + 1] = id
          held[#held + 1] = id
          held[#held + 1] = text
          reply[#reply + 1] = mark .. length .. ',' .. digits(#body) .. '|' .. id .. body
          given[#given + 1] = length .. ':' .. id
          if at > NOW then
            early = early + 1
            at = NOW
          end
          -- Count in two buckets for each doubling of the lateness in µs
          -- (dtimer/model/histogram.py).
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

  -- Put this node on the roster if it has free handler threads, at the tail if it took work. If no
  -- other node is listed, a node without free threads also stays (`reserve`) if some of its events
  -- were claimed ahead: the threads for these events are free until the events are due.
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
  -- Claim again at once if events are due that are not kept for other nodes. There are three
  -- causes: the limit of this claim was used up by events that were buried, the bodies have
  -- reached the limit of bytes, or the next occurrence is due already.
  local again = free > 0 and earliest and earliest <= NOW
    and (#ids > taken + held_back or told == 0) and not (strict and taken == 0)
  if earliest and not paused then
    -- The next claim should be made half of the look-ahead before the next event is due. It then
    -- claims this event, and the events shortly after it, ahead of time. If the event is nearer
    -- than that, this claim has left it on purpose, so the next claim is made when it is due.
    local lead = reserve and 0 or math.floor(ahead / 2)
    local coming = earliest - NOW > lead and earliest - NOW - lead or earliest - NOW
    if head == node then
      -- This node is on duty. Events that are due and unclaimed are kept for nodes that are
      -- expected to claim now.
      wait = again and 0 or earliest > NOW and coming or GRACE
      redis.call('ZADD', PROMISE, digits(NOW + wait), node)
    elseif head then
      left = left or redis.call('ZCOUNT', DUE, '-inf', horizon)
      rouse(earliest, left)
      if left > 0 and free > 0 then wait = GRACE end
    elseif free > 0 then
      -- No node can be woken, so each node that claims is told when to claim again.
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

-- Remember the results of the settlements if the script fails after them. When the node sends this
-- claim again, the reply has the results. The node's next claim then fails with the error.
local function failed()
  if settled then
    remember(table.concat({settled, was, digits(asked), '0', '0', ''}, ';'))
  end
end

return named(take_turn, failed)
