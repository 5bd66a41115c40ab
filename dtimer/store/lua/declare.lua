-- Declare a schedule: a new one, a changed one, or an unchanged one, as every process does when it
-- starts.
--
-- Kind      once
-- Uses      types session wake events schedule retime
-- Commands  hdel hset zadd zscore
--
-- Arguments
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
-- Returns   new, changed or same. A schedule with the same definition counts as changed if the data
--           of its time zone have changed, so that its nominal times differ.
--           behind:<µs> if no time of the list is after the last claimed nominal time, which is
--           <µs>. Nothing was done, and the caller must send later times
local done, stale = recall()
if stale then return stale end
if done then return done end
local wrong = check_types(DUE, BODY, LEASE, TRIES, DEAD, DIED, SYS, DEFINITIONS, TEMPLATES, STATES,
  ROSTER, EXPECTED)
if wrong then return wrong end

local old = schedules().read_state(schedule)
local result = 'same'
if old and old.print == fingerprint then
  -- Repair a chain whose pending occurrence was removed by hand.
  if old.paused == '' and old.next ~= ''
    and not redis.call('ZSCORE', DUE, schedules().occurrence_id(schedule, old.next)) then
    schedules().store_pending(schedule, old)
  end
  if retime(schedule, old, times, final) then result = 'changed' end
else
  -- If the clock was set back, all times of the list may be before the last claimed occurrence. The
  -- next occurrence would then be missing, and the chain would end.
  local latest = tonumber(string.match(times, '(%d+)$'))
  if every == '' and final ~= '1' and latest and old and latest <= (tonumber(old.last) or 0) then
    return 'behind:' .. old.last
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
  local state = {
    print = fingerprint, every = every, misfire = misfire, overlap = overlap, jitter = jitter,
    stop = stop, left = left, paused = old and old.paused or '', next = '',
    last = old and old.last or '', running = old and old.running or '', ahead = times,
    final = final, gap = '', anchor = '', waits = '', grace = grace, expires = expires, owner = '',
  }
  redis.call('HSET', DEFINITIONS, schedule, definition)
  redis.call('HSET', TEMPLATES, schedule, template)
  -- A change applies from now on. An occurrence that is already due is still delivered, once. If
  -- the interval is unchanged, the nominal times stay the same. If each change moved them, a
  -- schedule that is changed more often than it recurs would never run.
  local first
  local interval, from = tonumber(every), tonumber(start)
  if old and old.next ~= '' and tonumber(old.next) <= NOW then first = tonumber(old.next) end
  if interval then
    if string.sub(start, 1, 1) == '+' then
      from = NOW + interval
      if old and old.every == every then
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
  if first and stop ~= '' and first > tonumber(stop) then first, state.left = nil, '0' end
  state.next = first and state.left ~= '0' and digits(first) or ''
  if state.paused == '' then schedules().store_pending(schedule, state) end
  schedules().write_state(schedule, state)
  result = old and 'changed' or 'new'
end
local earliest = first_due()
if earliest then wake_next(earliest, 0) end
remember(result)
return result
