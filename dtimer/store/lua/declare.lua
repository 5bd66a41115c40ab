-- Declare a schedule: a new one, a changed one, or an unchanged one, as every process does when it
-- starts.
--
-- Kind      once
-- Uses      guard session rouse events plan retime
-- Commands  hdel hset zadd zscore
--
-- Arguments
--   schedule     its name
--   fingerprint  of the definition
--   definition   as JSON that no script reads
--   template     '<max_retries>|<payload>' of its occurrences
--   every        interval in µs; '' for a list of nominal times
--   misfire      c, s or a (parts/plan.lua)
--   overlap      q, a or s (parts/plan.lua)
--   jitter       in µs
--   start        the first nominal time of an interval: µs, or '+<µs>' from now
--   stop         the last moment at which a nominal time may be, in µs; '' for none
--   left         how many occurrences; '' for no limit
--   times        the next nominal times of a list, joined by ','
--   final        1 if no other times will follow these, else ''
--
-- Returns   new, changed or same. The result is also changed if the definition is the same, but
--           its time zone has changed, and so have its nominal times.
--           behind:<µs> if no time of the list is after the last claimed nominal time, which is
--           <µs>. Nothing was done, and the caller must send later times
local done, stale = recall()
if stale then return stale end
if done then return done end
local wrong = guard(DUE, BODY, LEASE, TRIES, DEAD, GRAVES, SYS, DEFS, PLANS, BEATS, ROSTER,
  PROMISE)
if wrong then return wrong end

local old = plan().read_beat(schedule)
local result = 'same'
if old and old.print == fingerprint then
  -- Repair a chain whose pending occurrence was removed by hand.
  if old.paused == '' and old.next ~= ''
    and not redis.call('ZSCORE', DUE, plan().occurrence(schedule, old.next)) then
    plan().put(schedule, old)
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
    plan().sure_to_go_on(schedule, old)
    remove(plan().occurrence(schedule, old.next))
  else
    -- Try the commands that change something, so that a missing permission fails before any
    -- change.
    redis.call('ZADD', DUE, 'XX', '0', '')
    redis.call('HDEL', BODY, '')
  end
  local beat = {
    print = fingerprint, every = every, misfire = misfire, overlap = overlap, jitter = jitter,
    stop = stop, left = left, paused = old and old.paused or '', next = '',
    last = old and old.last or '', running = old and old.running or '', ahead = times,
    final = final, gap = '', anchor = '', waits = '',
  }
  redis.call('HSET', DEFS, schedule, definition)
  redis.call('HSET', PLANS, schedule, template)
  -- A change applies from now on. An occurrence that is already due is still delivered, once. If
  -- the interval is unchanged, so are the nominal times. Otherwise a schedule that is changed more
  -- often than it recurs would never run.
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
    beat.anchor = digits(from)
    -- Do not repeat occurrences that were claimed before the clock was set back.
    local over = math.max(NOW, tonumber(beat.last) or 0)
    if not first and old and from <= over then
      first = plan().following(beat, over)
    elseif not first then
      first = from
    end
  else
    first = first or plan().following(beat, beat.last ~= '' and beat.last or '0')
  end
  if first and beat.stop ~= '' and first > tonumber(beat.stop) then first, beat.left = nil, '0' end
  beat.next = first and beat.left ~= '0' and digits(first) or ''
  if beat.paused == '' then plan().put(schedule, beat) end
  plan().write_beat(schedule, beat)
  result = old and 'changed' or 'new'
end
local earliest = first_due()
if earliest then rouse(earliest, 0) end
remember(result)
return result
