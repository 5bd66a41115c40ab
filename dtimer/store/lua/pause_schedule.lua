-- Pause or resume one schedule. An occurrence that falls due during the pause is a misfire.
--
-- Kind      once
-- Uses      guard session rouse events plan
--
-- Arguments
--   schedule  its name
--   on        1 to pause, 0 to resume
--
-- Returns   1 if that changed something, else 0
local done, stale = recall()
if stale then return stale end
if done then return done end
local wrong = guard(DUE, BODY, LEASE, TRIES, DEAD, GRAVES, SYS, PLANS, BEATS, ROSTER, PROMISE)
if wrong then return wrong end

local beat = plan().read_beat(schedule)
if not beat or (beat.paused == '1') == (on == '1') then
  remember('0')
  return '0'
end
if on == '1' then
  if beat.next ~= '' then
    plan().sure_to_go_on(schedule, beat)
    remove(plan().occurrence(schedule, beat.next))
  end
  beat.paused = '1'
else
  beat.paused = ''
  plan().put(schedule, beat)
end
plan().write_beat(schedule, beat)
local earliest = first_due()
if earliest then rouse(earliest, earliest <= NOW and 1 or 0) end
remember('1')
return '1'
