-- Pause or resume one schedule. An occurrence that falls due during the pause is a misfire.
--
-- Kind      once
-- Uses      types session wake events schedule
--
-- Arguments
--   schedule  its name
--   on        1 to pause, 0 to resume
--
-- Returns   1 if that changed something, else 0
local done, stale = recall()
if stale then return stale end
if done then return done end
local wrong = check_types(DUE, BODY, LEASE, TRIES, DEAD, DIED, SYS, TEMPLATES, STATES,
  ROSTER, EXPECTED)
if wrong then return wrong end

local state = schedules().read_state(schedule)
if not state or (state.paused == '1') == (on == '1') then
  remember('0')
  return '0'
end
if on == '1' then
  if state.next ~= '' then
    schedules().try_writes(schedule, state)
    remove(schedules().occurrence_id(schedule, state.next))
  end
  state.paused = '1'
else
  state.paused = ''
  schedules().store_pending(schedule, state)
end
schedules().write_state(schedule, state)
local earliest = first_due()
if earliest then wake_next(earliest, earliest <= NOW and 1 or 0) end
remember('1')
return '1'
