-- Recurring events. A schedule has one pending occurrence at a time. The script that claims it
-- creates the next one from its nominal time, so a crash cannot break the chain.
-- A script cannot evaluate a cron expression. Nodes store the next few nominal times in `ahead`,
-- and the reply to a claim names the schedules that run short of them. An occurrence is not
-- claimed while the time of the next one is unknown.
--
-- An occurrence is an event with the id '<schedule>@<nominal µs>'.
--
-- The state of a schedule, a `beat`, is these fields, joined by ';':
--   print     fingerprint of the definition
--   every     interval in µs; '' if the schedule has a list of nominal times
--   misfire   c coalesce, s skip, a all
--   overlap   q queue one, a allow, s skip
--   jitter    in µs
--   stop      the last moment at which a nominal time may be; '' for none
--   left      how many occurrences are left; '' for no limit
--   paused    1 or ''
--   next      nominal time of the pending occurrence; '' if there is none
--   last      nominal time of the last claimed occurrence. If it also stood for missed ones, the
--             latest of their nominal times. '' before the first claim
--   running   nominal time of the last claimed occurrence; '' once it has ended
--   ahead     nominal times that follow, joined by ','
--   final     1 if no other times will follow these, else ''
--   gap       how many past times were left out of the list `ahead`; '' for none
--   anchor    one nominal time of the interval, from which the others are computed
--   waits     the time to which `put_off` has moved the pending occurrence; '' if it has not
--
-- Few events are occurrences. So a script creates these functions only when it needs the first of
-- them: creating them takes as long as ten Redis commands.
--
-- Commands  hdel hget hset zadd zrem zscore
local plans_made
local function plan()
  if plans_made then return plans_made end
  local BEAT = {
    'print', 'every', 'misfire', 'overlap', 'jitter', 'stop', 'left', 'paused', 'next', 'last',
    'running', 'ahead', 'final', 'gap', 'anchor', 'waits',
  }
  -- The pattern of each field; `print` may be anything.
  local LOOKS = {
    every = '^%d*$', misfire = '^[csa]$', overlap = '^[qas]$', jitter = '^%d+$', stop = '^%d*$',
    left = '^%d*$', paused = '^1?$', next = '^%d*$', last = '^%d*$', running = '^%d*$',
    ahead = '^[%d,]*$', final = '^1?$', gap = '^%d*$', anchor = '^%d*$', waits = '^%d*$',
  }
  -- Format    occurrence_body parse_template with_missed
  -- The shortest interval, in µs.
  local SHORTEST = 10000
  -- How many missed occurrences misfire `a` delivers at most after a pause.
  local MOST_BEHIND = 1000
  -- A schedule runs short if `ahead` has this many times or fewer.
  local SHORT = 4
  -- An occurrence that waits is checked again after this time, in µs.
  local REMIND = 1000000

  -- Return the state of a schedule; nil if there is none or dtimer has not written it. An
  -- occurrence of such a schedule is an ordinary event, and the schedule rests until it is
  -- declared again.
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
    -- A jitter longer than the interval cannot have been written by dtimer, and could make the loop
    -- in `meet` that counts the missed occurrences very long.
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

  -- Return the schedule and the nominal time that an id names; nil if it is not an occurrence's id.
  local function named_by(id)
    return string.match(id, '^(.+)@(%d+)$')
  end

  -- Return the nominal time after `nominal`, computed from the interval or taken off the list.
  -- Return nil if there is none, or if it is not known yet.
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

  -- Return whether there may be more nominal times than the list has.
  local function open_ended(beat)
    return beat.every == '' and beat.final ~= '1' and beat.left ~= '0'
  end

  -- Return the jitter of a nominal time: the same value on every call.
  local function spread(schedule, beat, nominal)
    local width = tonumber(beat.jitter) or 0
    if width == 0 then return 0 end
    local mixed = nominal % 2147483647
    for i = 1, #schedule do mixed = (mixed * 31 + string.byte(schedule, i)) % 2147483647 end
    -- Lehmer's generator. Its first results are close for close seeds, so use the third.
    for _ = 1, 3 do mixed = mixed * 48271 % 2147483647 end
    return math.floor(mixed / 2147483647 * (width + 1))
  end

  local function is_due(schedule, beat, nominal)
    return nominal + spread(schedule, beat, nominal) <= NOW
  end

  -- Store the pending occurrence in DUE, as a post does. An event with the same id is replaced:
  -- it may be left from a schedule that was ended and declared again.
  local function put(schedule, beat)
    local template = redis.call('HGET', PLANS, schedule)
    if beat.next ~= '' and template then
      local max_retries, payload = parse_template(template)
      if not max_retries then return end
      local nominal = tonumber(beat.next)
      local id = occurrence(schedule, beat.next)
      local added = redis.call('ZADD', DUE, digits(nominal + spread(schedule, beat, nominal)), id)
      redis.call('HSET', BODY, id, occurrence_body(max_retries, beat.next, payload))
      if added == 0 then
        redis.call('HDEL', LEASE, id)
        redis.call('HDEL', TRIES, id)
      end
      if redis.call('HDEL', DEAD, id) > 0 then redis.call('ZREM', GRAVES, id) end
    end
  end

  -- Before the pending occurrence is removed, try the commands that will replace it by the next one,
  -- in a form that changes nothing. If a command is refused, for example because a permission is
  -- missing, the script fails now. If it failed half way, no occurrence would be pending. The ZREM
  -- comes first: if Redis is out of memory, it allows a ZREM as the first write of a script, and
  -- then all later writes of that script.
  local function sure_to_go_on(schedule, beat)
    redis.call('ZREM', DUE, '')
    redis.call('ZADD', DUE, 'XX', '0', '')
    redis.call('HDEL', BODY, '')
    write_beat(schedule, beat)
  end

  -- Make `after` the pending occurrence in place of the current one. The current one is over, and
  -- counts against `left`.
  local function advance(schedule, beat, after)
    if beat.left ~= '' then beat.left = digits(math.max(0, tonumber(beat.left) - 1)) end
    beat.next = after and beat.left ~= '0' and digits(after) or ''
    beat.waits = ''
    put(schedule, beat)
    write_beat(schedule, beat)
  end

  -- Move the pending occurrence to a later time, and record that time. If the user reschedules the
  -- occurrence, its time differs from the recorded one, and `go_on` does not move it.
  local function put_off(schedule, beat, id, when)
    beat.waits = digits(when)
    redis.call('ZADD', DUE, beat.waits, id)
    write_beat(schedule, beat)
  end

  -- Let the pending occurrence start now, if it is still at the time to which `put_off` moved it.
  local function go_on(schedule, beat)
    local id = occurrence(schedule, beat.next)
    if beat.waits ~= '' and tonumber(redis.call('ZSCORE', DUE, id)) == tonumber(beat.waits) then
      -- If the clock was set back meanwhile, the occurrence may not be due any more.
      local nominal = tonumber(beat.next)
      redis.call('ZADD', DUE, 'XX',
        digits(math.max(NOW, nominal + spread(schedule, beat, nominal))), id)
    end
  end

  -- Decide about an occurrence that is due. If it may start now, return true and its body, which has
  -- the number of missed occurrences that it also stands for. If it was moved or dropped, return
  -- false.
  local function meet(id, body)
    local schedule, nominal = named_by(id)
    local beat = schedule and read_beat(schedule)
    if not beat or beat.next ~= nominal then return true, body end

    local runs = beat.running ~= '' and
      redis.call('ZSCORE', DUE, occurrence(schedule, beat.running))
    if runs and beat.overlap == 'q' then
      -- Wait for the running occurrence to end. If its node dies, wait for its lease to end.
      put_off(schedule, beat, id, math.max(tonumber(runs), NOW) + REMIND)
      return false
    end

    local latest, missed = tonumber(nominal), tonumber(beat.gap) or 0
    local after = following(beat, latest)
    -- `behind` is true if this occurrence stands for all missed ones, or is dropped with them. If
    -- it is false (misfire `a`), the missed occurrences are delivered one by one.
    local behind = runs and beat.overlap == 's' or beat.misfire ~= 'a'
    if beat.every == '' then
      while behind and after and is_due(schedule, beat, after) do
        missed = missed + 1
        latest = after
        after = following(beat, latest)
      end
      if not after and open_ended(beat) then
        -- The next nominal time is unknown. Wait until a node adds more. Replace the past times in
        -- the list by the last of them, so that the list stays short. The node adds the times after
        -- it. `gap` counts the others, and not the last, which is counted again from the list.
        if latest > tonumber(nominal) then
          beat.ahead, beat.gap = digits(latest), digits(missed - 1)
        end
        put_off(schedule, beat, id, NOW + REMIND)
        return false
      end
    elseif after and is_due(schedule, beat, after) then
      local every = tonumber(beat.every)
      -- How many occurrences after this one are due. With misfire `a`, pass over only those that
      -- exceed MOST_BEHIND.
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
      -- Drop each occurrence whose successor is due as well. The latest one is only
      -- late, and becomes the pending occurrence.
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
    if missed > 0 then
      body = with_missed(body, missed)
      redis.call('HSET', BODY, id, body)
    end
    return true, body
  end

  -- Record that an occurrence has ended, whether it succeeded or not. If the next occurrence has
  -- waited for it, the next one may start.
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
