-- Declare one schedule: a new one, a changed one, or an unchanged one.
--
-- A definition is a table of texts:
--   schedule     its name
--   fingerprint  of the definition
--   definition   as JSON that no script reads
--   template     '<max_retries>|<payload>' of its occurrences
--   every        interval in µs; '' for a list of nominal times
--   misfire      c, s or a (parts/schedule.lua)
--   overlap      q, a or s (parts/schedule.lua)
--   jitter       in µs
--   grace        how late an occurrence may start, in µs; '' for no limit
--   expires      how long after its due time an occurrence expires, in µs; '' for never
--   start        the first nominal time of an interval: µs, or '+<µs>' from now
--   stop         the last moment at which a nominal time may be, in µs; '' for none
--   left         how many occurrences; '' for no limit
--   times        the next nominal times of a list, joined by ','
--   final        1 if no other times will follow these, else ''
--
-- Commands  hdel hset zadd zscore

local DEFINITION = {
  'schedule', 'fingerprint', 'definition', 'template', 'every', 'misfire', 'overlap', 'jitter',
  'grace', 'expires', 'start', 'stop', 'left', 'times', 'final',
}

-- Return the definitions whose texts begin at ARGV[at].
local function read_definitions(at)
  local list = {}
  for first = at, #ARGV, #DEFINITION do
    local d = {}
    for i, name in ipairs(DEFINITION) do d[name] = ARGV[first + i - 1] end
    list[#list + 1] = d
  end
  return list
end

-- Return the last claimed nominal time of a schedule if no time of the list is after it, else nil.
-- If the clock was set back, all times of the list may be before the last claimed occurrence. The
-- next occurrence would then be missing, and the chain would end.
local function is_behind(d)
  local latest = tonumber(string.match(d.times, '(%d+)$'))
  if d.every ~= '' or d.final == '1' or not latest then return nil end
  local old = schedules().read_state(d.schedule)
  if old and old.print ~= d.fingerprint and latest <= (tonumber(old.last) or 0) then
    return old.last
  end
end

-- Return the first nominal time of a schedule that is new or changed, nil if there is none. `state`
-- receives the anchor of an interval.
--
-- A change applies from now on. An occurrence that is already due is still delivered, once. If the
-- interval is unchanged, the nominal times stay the same. If each change moved them, a schedule
-- that is changed more often than it recurs would never run.
local function first_time(d, state, old)
  local first
  local interval, from = tonumber(d.every), tonumber(d.start)
  if old and old.next ~= '' and tonumber(old.next) <= NOW then first = tonumber(old.next) end
  if interval then
    if string.sub(d.start, 1, 1) == '+' then
      from = NOW + interval
      if old and old.every == d.every then
        from = tonumber(old.anchor)
      elseif old and old.last ~= '' then
        from = tonumber(old.last) + interval
      end
    end
    state.anchor = digits(from)
    -- Do not repeat occurrences that were claimed before the clock was set back.
    local over = math.max(NOW, tonumber(state.last) or 0)
    if not first and old and from <= over then
      first = schedules().next_after(state, over)
    elseif not first then
      first = from
    end
  else
    first = first or schedules().next_after(state, state.last ~= '' and state.last or '0')
  end
  if first and d.stop ~= '' and first > tonumber(d.stop) then first, state.left = nil, '0' end
  return first
end

-- Declare the schedule of a definition; return new, changed or same. A schedule with the same
-- definition counts as changed if the data of its time zone have changed, so that its nominal times
-- differ.
--
-- `owner` is '' if the schedule is declared by itself. `removed` is the state that the schedule had
-- when its owner removed it, nil if that is not remembered.
local function declare(d, owner, removed)
  local schedule = d.schedule
  local old = schedules().read_state(schedule)
  if owner == '' then owner = old and old.owner or '' end
  if old and old.print == d.fingerprint then
    -- Repair a chain whose pending occurrence was removed by hand.
    if old.paused == '' and old.next ~= ''
      and not redis.call('ZSCORE', DUE, schedules().occurrence_id(schedule, old.next)) then
      schedules().store_pending(schedule, old)
    end
    schedules().renew_payload(schedule, old, d.template)
    local changed = retime(schedule, old, d.times, d.final)
    if old.owner ~= owner then
      old.owner = owner
      schedules().write_state(schedule, old)
    end
    return changed and 'changed' or 'same'
  end
  if old and old.next ~= '' then
    schedules().try_writes(schedule, old)
    remove(schedules().occurrence_id(schedule, old.next))
  else
    -- Try the commands that change something, so that a missing permission fails before any
    -- change.
    redis.call('ZADD', DUE, 'XX', '0', '')
    redis.call('HDEL', BODY, '')
  end
  local left, paused = d.left, old and old.paused or ''
  if not old and removed then
    paused = removed.paused
    if removed.print == d.fingerprint then left = removed.left end
  end
  local state = {
    print = d.fingerprint, every = d.every, misfire = d.misfire, overlap = d.overlap,
    jitter = d.jitter, stop = d.stop, left = left, paused = paused, next = '',
    last = old and old.last or '', running = old and old.running or '', ahead = d.times,
    final = d.final, gap = '', anchor = '', waits = '', grace = d.grace, expires = d.expires,
    owner = owner,
  }
  redis.call('HSET', DEFINITIONS, schedule, d.definition)
  redis.call('HSET', TEMPLATES, schedule, d.template)
  local first = first_time(d, state, old)
  state.next = first and state.left ~= '0' and digits(first) or ''
  if state.paused == '' then schedules().store_pending(schedule, state) end
  schedules().write_state(schedule, state)
  return old and 'changed' or 'new'
end
