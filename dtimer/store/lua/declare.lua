-- Declare a schedule: new, changed, or, as every process does at its start, once more.
--
-- Uses      guard memo rouse events plan
--
-- ARGV[3]   schedule
-- ARGV[4]   fingerprint of the definition
-- ARGV[5]   definition, as JSON that no script reads
-- ARGV[6]   max_retries and payload of its occurrences, as in a body
-- ARGV[7]   interval in µs; '' for a list of nominal times
-- ARGV[8]   misfire: c, s or a
-- ARGV[9]   overlap: q, a or s
-- ARGV[10]  jitter in µs
-- ARGV[11]  the first nominal time of an interval: µs, or '+<µs>' from now
-- ARGV[12]  no nominal time is after this, in µs; '' for none
-- ARGV[13]  how many occurrences; '' for no limit
-- ARGV[14]  the next nominal times of a list, joined by ','
-- ARGV[15]  1 when no more than these will follow, else ''
--
-- Returns   new, changed or same
local done, stale = recall()
if stale then return stale end
if done then return done end
local wrong = guard(DUE, BODY, SYS, DEFS, PLANS, BEATS, ROSTER, PROMISE)
if wrong then return wrong end

local schedule = ARGV[3]
local old = read_beat(schedule)
local result = 'same'
if old and old.print == ARGV[4] then
  -- Nothing changes; but a chain that was broken by hand goes on.
  if old.paused == '' and old.next ~= ''
    and not redis.call('ZSCORE', DUE, occurrence(schedule, old.next)) then
    put(schedule, old)
  end
else
  if old and old.next ~= '' then remove(occurrence(schedule, old.next)) end
  local beat = {
    print = ARGV[4], every = ARGV[7], misfire = ARGV[8], overlap = ARGV[9], jitter = ARGV[10],
    stop = ARGV[12], left = ARGV[13], paused = old and old.paused or '', next = '',
    last = old and old.last or '', running = old and old.running or '', ahead = ARGV[14],
    final = ARGV[15], gap = '',
  }
  redis.call('HSET', DEFS, schedule, ARGV[5])
  redis.call('HSET', PLANS, schedule, ARGV[6])
  local first
  if beat.every ~= '' then
    first = tonumber(ARGV[11])
    if string.sub(ARGV[11], 1, 1) == '+' then first = NOW + tonumber(string.sub(ARGV[11], 2)) end
    -- What was handed out under the old definition is not handed out again.
    local over = math.max(tonumber(beat.last) or 0, old and NOW or 0)
    if first <= over then
      first = first + (math.floor((over - first) / beat.every) + 1) * tonumber(beat.every)
    end
    if beat.stop ~= '' and first > tonumber(beat.stop) then first, beat.left = nil, '0' end
  else
    first = following(beat, beat.last ~= '' and beat.last or '0')
  end
  beat.next = first and beat.left ~= '0' and digits(first) or ''
  if beat.paused == '' then put(schedule, beat) end
  write_beat(schedule, beat)
  result = old and 'changed' or 'new'
end
local earliest = first_due()
if earliest then rouse(earliest, 0) end
remember(result)
return result
