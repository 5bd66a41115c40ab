-- Declare a schedule: a new one, a changed one, or an unchanged one, as every process does when it
-- starts.
--
-- Uses      guard session rouse events plan retime
--
-- ARGV[3]   schedule
-- ARGV[4]   fingerprint of the definition
-- ARGV[5]   definition, as JSON that no script reads
-- ARGV[6]   '<max_retries>|<payload>' of its occurrences
-- ARGV[7]   interval in µs; '' for a list of nominal times
-- ARGV[8]   misfire: c, s or a
-- ARGV[9]   overlap: q, a or s
-- ARGV[10]  jitter in µs
-- ARGV[11]  the first nominal time of an interval: µs, or '+<µs>' from now
-- ARGV[12]  the last moment at which a nominal time may be, in µs; '' for none
-- ARGV[13]  how many occurrences; '' for no limit
-- ARGV[14]  the next nominal times of a list, joined by ','
-- ARGV[15]  1 if no other times will follow these, else ''
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

local schedule = ARGV[3]
local old = plan().read_beat(schedule)
local result = 'same'
if old and old.print == ARGV[4] then
  -- Repair a chain whose pending occurrence was removed by hand.
  if old.paused == '' and old.next ~= ''
    and not redis.call('ZSCORE', DUE, plan().occurrence(schedule, old.next)) then
    plan().put(schedule, old)
  end
  if retime(schedule, old, ARGV[14], ARGV[15]) then result = 'changed' end
else
  -- If the clock was set back, all times of the list may be before the last claimed occurrence. The
  -- next occurrence would then be missing, and the chain would end.
  local latest = tonumber(string.match(ARGV[14], '(%d+)$'))
  if ARGV[7] == '' and ARGV[15] ~= '1' and latest and old and latest <= (tonumber(old.last) or 0) then
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
    print = ARGV[4], every = ARGV[7], misfire = ARGV[8], overlap = ARGV[9], jitter = ARGV[10],
    stop = ARGV[12], left = ARGV[13], paused = old and old.paused or '', next = '',
    last = old and old.last or '', running = old and old.running or '', ahead = ARGV[14],
    final = ARGV[15], gap = '', anchor = '', waits = '',
  }
  redis.call('HSET', DEFS, schedule, ARGV[5])
  redis.call('HSET', PLANS, schedule, ARGV[6])
  -- A change applies from now on. An occurrence that is already due is still delivered, once. If
  -- the interval is unchanged, so are the nominal times. Otherwise a schedule that is changed more
  -- often than it recurs would never run.
  local first
  local every, start = tonumber(beat.every), tonumber(ARGV[11])
  if old and old.next ~= '' and tonumber(old.next) <= NOW then first = tonumber(old.next) end
  if every then
    if string.sub(ARGV[11], 1, 1) == '+' then
      start = NOW + every
      if old and old.every == beat.every then
        start = tonumber(old.anchor)
      elseif old and old.last ~= '' then
        start = tonumber(old.last) + every
      end
    end
    beat.anchor = digits(start)
    -- Do not repeat occurrences that were claimed before the clock was set back.
    local over = math.max(NOW, tonumber(beat.last) or 0)
    if not first and old and start <= over then
      first = plan().following(beat, over)
    elseif not first then
      first = start
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
