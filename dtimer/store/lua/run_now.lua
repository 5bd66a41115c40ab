-- Create one more occurrence of a schedule, due now, in addition to its regular ones.
--
-- Kind      once
-- Uses      types session wake events schedule
-- Commands  hexists zadd
--
-- Arguments
--   schedule  its name
--
-- Returns   the id of the occurrence; '' if it does not exist
local done, stale = recall()
if stale then return stale end
if done then return done end
local wrong = check_types(DUE, BODY, LEASE, TRIES, DEAD, DIED, SYS, TEMPLATES, STATES,
  ROSTER, EXPECTED)
if wrong then return wrong end

local state = schedules().read_state(schedule)
local id = ''
if state then
  local now = NOW
  while digits(now) == state.next
    or redis.call('HEXISTS', BODY, schedules().occurrence_id(schedule, digits(now))) == 1
    or redis.call('HEXISTS', DEAD, schedules().occurrence_id(schedule, digits(now))) == 1 do
    now = now + 1
  end
  now = digits(now)
  local extra = {next = now, jitter = '', expires = state.expires}
  schedules().store_pending(schedule, extra)
  count('posted', 1)
  id = schedules().occurrence_id(schedule, now)
  redis.call('ZADD', DUE, digits(NOW), id)
  wake_next(first_due(), 1)
end
remember(id)
return id
