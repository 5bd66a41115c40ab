-- Recurring events. A schedule has one occurrence pending at a time; the script that hands
-- it out makes the next from the nominal time of that one, so no crash breaks the chain.
-- A script cannot read cron: nodes keep the next few nominal times in `ahead`, and are told
-- when it runs short. An occurrence is not handed out while the one after it is unknown.
--
-- An occurrence is an event of the id '<schedule>@<nominal µs>', whose body has the third
-- field 's<nominal>,<missed>'.
--
-- A beat is '<fields>' joined by ';':
--   print     fingerprint of the definition
--   every     interval in µs, or '' for a list of nominal times
--   misfire   c coalesce, s skip, a all
--   overlap   q queue one, a allow, s skip
--   jitter    in µs
--   stop      no nominal time is after this; '' for none
--   left      how many occurrences are left; '' for no limit
--   paused    1 or ''
--   next      nominal time of the pending occurrence; ''
--   last      nominal time of the last that was handed out, or that it stood for; ''
--   running   nominal time of the last that was handed out, until that has ended; ''
--   ahead     nominal times that follow, joined by ','
--   final     1 when no more than these will follow; ''
--   gap       how many are over and were left out of the list; ''
--   anchor    a nominal time of the interval, from which the others are counted
--   waits     until when the pending occurrence was put off by `meet`; ''
--
-- Few events are occurrences, so these functions are made when one is met: to make them costs
-- as much as ten commands.
local plans_made
local function plan()
  if plans_made then return plans_made end
  local BEAT = {
    'print', 'every', 'misfire', 'overlap', 'jitter', 'stop', 'left', 'paused', 'next', 'last',
    'running', 'ahead', 'final', 'gap', 'anchor', 'waits',
  }
  -- What each has to look like; print may be anything.
  local LOOKS = {
    every = '^%d*$', misfire = '^[csa]$', overlap = '^[qas]$', jitter = '^%d+$', stop = '^%d*$',
    left = '^%d*$', paused = '^1?$', next = '^%d*$', last = '^%d*$', running = '^%d*$',
    ahead = '^[%d,]*$', final = '^1?$', gap = '^%d*$', anchor = '^%d*$', waits = '^%d*$',
  }
  local SHORTEST = 10000
  local MOST_BEHIND = 1000
  local SHORT = 4
  local REMIND = 1000000

  -- nil when there is none, and when somebody else has written it: an occurrence of such a
  -- schedule is an event like any other, and the schedule waits to be declared again.
  local function read_beat(schedule)
    local text = redis.call('HGET', BEATS, schedule)
    if not text or #text > 4000 then return nil end
    local beat, i = {}, 1
    for value in string.gmatch(text .. ';', '([^;]*);') do
      beat[BEAT[i] or 'more'] = value
      i = i + 1
    end
    for name, looks in pairs(LOOKS) do
      local value = beat[name] or '?'
      if not string.find(value, looks) or (#value > 17 and name ~= 'ahead') then return nil end
    end
    local every = tonumber(beat.every)
    -- A jitter beyond the interval would be walked through, step by step.
    if every and (every < SHORTEST or every < tonumber(beat.jitter) or beat.anchor == '') then
      return nil
    end
    return beat
  end

  local function write_beat(schedule, beat)
    local values = {}
    for i, name in ipairs(BEAT) do values[i] = beat[name] or '' end
    redis.call('HSET', BEATS, schedule, table.concat(values, ';'))
  end

  local function occurrence(schedule, nominal)
    return schedule .. '@' .. nominal
  end

  -- The schedule and the nominal time that an id names; nil for any other id.
  local function named_by(id)
    return string.match(id, '^(.+)@(%d+)$')
  end

  -- Take the nominal time after `nominal` off the list, or count it; nil when there is none,
  -- or when it is not known yet.
  local function following(beat, nominal)
    local after
    if beat.every ~= '' then
      local every, anchor = tonumber(beat.every), tonumber(beat.anchor)
      after = anchor + (math.floor((tonumber(nominal) - anchor) / every) + 1) * every
    else
      repeat
        local first, rest = string.match(beat.ahead, '^(%d+),?(.*)$')
        if not first then return nil end
        beat.ahead = rest
        after = tonumber(first)
      until after > tonumber(nominal)
    end
    if beat.stop ~= '' and after > tonumber(beat.stop) then
      beat.left = '0'
      return nil
    end
    return after
  end

  -- More may follow than is known.
  local function open_ended(beat)
    return beat.every == '' and beat.final ~= '1' and beat.left ~= '0'
  end

  -- Spread over the jitter, the same for the same nominal time whoever asks.
  local function spread(schedule, beat, nominal)
    local width = tonumber(beat.jitter) or 0
    if width == 0 then return 0 end
    local mixed = nominal % 2147483647
    for i = 1, #schedule do mixed = (mixed * 31 + string.byte(schedule, i)) % 2147483647 end
    -- Lehmer's generator; its first numbers after seeds that are close are close, too.
    for _ = 1, 3 do mixed = mixed * 48271 % 2147483647 end
    return math.floor(mixed / 2147483647 * (width + 1))
  end

  local function is_due(schedule, beat, nominal)
    return nominal + spread(schedule, beat, nominal) <= NOW
  end

  -- Put the pending occurrence into the sorted set of truth, as a post does: what there was of
  -- its id, of a schedule that was ended and declared again, is superseded.
  local function put(schedule, beat)
    local plan = redis.call('HGET', PLANS, schedule)
    if beat.next ~= '' and plan then
      local max_retries, payload = string.match(plan, '^(%d+)|()')
      if not max_retries then return end
      local nominal = tonumber(beat.next)
      local id = occurrence(schedule, beat.next)
      local added = redis.call('ZADD', DUE, digits(nominal + spread(schedule, beat, nominal)), id)
      redis.call('HSET', BODY, id,
        ',' .. max_retries .. ',s' .. beat.next .. ',0|' .. string.sub(plan, payload))
      if added == 0 then
        redis.call('HDEL', LEASE, id)
        redis.call('HDEL', TRIES, id)
      end
      if redis.call('HDEL', DEAD, id) > 0 then redis.call('ZREM', GRAVES, id) end
    end
  end

  -- Whoever takes the pending occurrence away asks for this first: without one of the commands
  -- that put the next in its place, because a permission was taken away, say, it would end half
  -- way, and with it the chain. Nothing changes here. A ZREM first: Redis allows it when it is out
  -- of memory, and with it what follows.
  local function sure_to_go_on(schedule, beat)
    redis.call('ZREM', DUE, '')
    redis.call('ZADD', DUE, 'XX', '0', '')
    redis.call('HDEL', BODY, '')
    write_beat(schedule, beat)
  end

  -- Go on from the pending occurrence to the next, having spent one of those that are left.
  local function advance(schedule, beat, after)
    if beat.left ~= '' then beat.left = digits(math.max(0, tonumber(beat.left) - 1)) end
    beat.next = after and beat.left ~= '0' and digits(after) or ''
    beat.waits = ''
    put(schedule, beat)
    write_beat(schedule, beat)
  end

  -- Put the pending occurrence off, in such a way that it is known who did: `go_on` does not
  -- pull at one that somebody else has moved.
  local function put_off(schedule, beat, id, when)
    beat.waits = digits(when)
    redis.call('ZADD', DUE, beat.waits, id)
    write_beat(schedule, beat)
  end

  -- What the pending occurrence was put off for has come.
  local function go_on(schedule, beat)
    local id = occurrence(schedule, beat.next)
    if beat.waits ~= '' and tonumber(redis.call('ZSCORE', DUE, id)) == tonumber(beat.waits) then
      -- The clock may have been put back meanwhile, and it be not due any more.
      local nominal = tonumber(beat.next)
      redis.call('ZADD', DUE, 'XX',
        digits(math.max(NOW, nominal + spread(schedule, beat, nominal))), id)
    end
  end

  -- Decide about an occurrence that is due: true and how many it stands for besides itself
  -- when it may start now, false when it was moved or dropped.
  local function meet(id)
    local schedule, nominal = named_by(id)
    local beat = schedule and read_beat(schedule)
    if not beat or beat.next ~= nominal then return true, 0 end

    local runs = beat.running ~= '' and
      redis.call('ZSCORE', DUE, occurrence(schedule, beat.running))
    if runs and beat.overlap == 'q' then
      -- Until that one has ended; and should its node die, until then.
      put_off(schedule, beat, id, math.max(tonumber(runs), NOW) + REMIND)
      return false
    end

    local latest, missed = tonumber(nominal), tonumber(beat.gap) or 0
    local after = following(beat, latest)
    local behind = runs and beat.overlap == 's' or beat.misfire ~= 'a'
    if beat.every == '' then
      while behind and after and is_due(schedule, beat, after) do
        missed = missed + 1
        latest = after
        after = following(beat, latest)
      end
      if not after and open_ended(beat) then
        -- What follows is not known: until somebody has brought more. The last of those that
        -- are over stays in the list, which so is short, and what is brought follows it.
        if latest > tonumber(nominal) then
          beat.ahead, beat.gap = digits(latest), digits(missed - 1)
        end
        put_off(schedule, beat, id, NOW + REMIND)
        return false
      end
    elseif after and is_due(schedule, beat, after) then
      local every = tonumber(beat.every)
      local over = math.floor((math.min(NOW, tonumber(beat.stop) or NOW) - after) / every) + 1
      while not is_due(schedule, beat, after + (over - 1) * every) do over = over - 1 end
      if not behind then over = over - (MOST_BEHIND - 1) end
      if over > 0 then
        missed = over
        latest = after + (over - 1) * every
        after = following(beat, latest)
      end
    end
    beat.gap = ''

    if runs and beat.overlap == 's' then
      remove(id)
      count('skipped', missed + 1)
      advance(schedule, beat, after)
      return false
    end
    if beat.misfire == 's' and missed > 0 then
      -- Those whose successor is due as well are dropped; the latest is merely late.
      remove(id)
      count('skipped', missed)
      if beat.every == '' and after then
        beat.ahead = digits(after) .. (beat.ahead ~= '' and ',' .. beat.ahead or '')
      end
      beat.next, beat.waits = digits(latest), ''
      put(schedule, beat)
      write_beat(schedule, beat)
      return false
    end
    count('coalesced', missed)
    beat.last, beat.running = digits(latest), nominal
    advance(schedule, beat, after)
    return true, missed
  end

  -- An occurrence has ended, well or not: the next, if it was kept waiting, may start.
  local function ended(id)
    local schedule, nominal = named_by(id)
    local beat = schedule and read_beat(schedule)
    if not beat or beat.running ~= nominal then return end
    beat.running = ''
    write_beat(schedule, beat)
    go_on(schedule, beat)
  end

  local function is_short(schedule)
    local beat = read_beat(schedule)
    if not beat or not open_ended(beat) then return false end
    local _, commas = string.gsub(beat.ahead, ',', '')
    return commas < SHORT
  end
  plans_made = {
    read_beat = read_beat,
    write_beat = write_beat,
    occurrence = occurrence,
    named_by = named_by,
    following = following,
    open_ended = open_ended,
    put = put,
    spread = spread,
    sure_to_go_on = sure_to_go_on,
    advance = advance,
    go_on = go_on,
    meet = meet,
    ended = ended,
    is_short = is_short,
  }
  return plans_made
end
