-- Cancel an event: it does not start or, if it is running, is not retried.
--
-- Kind      once
-- Roles     producer
-- Uses      types session wake events schedule
-- Commands  hget hset zrem zscore
--
-- Arguments
--   id      the event
--
-- Returns   cancelled: it will never start; in_flight: it has started and will not be retried;
--           not_found; short: nothing was done, because the next occurrence is not known and
--           the chain would end
local done, stale = recall()
if stale then return stale end
if done then return done end

local wrong = check_types(DUE, BODY, LEASE, TRIES, DEAD, DIED, SYS, TEMPLATES, STATES,
  ROSTER, EXPECTED)
if wrong then return wrong end

local result = 'not_found'
local lease = redis.call('HGET', LEASE, id)
local token, attempt, due, _, node, flags = parse_lease(lease)
if token then
  -- A lease that ended a moment ago counts as held, because its handler may still be running.
  --
  -- Let Redis accept the later writes if it is out of memory (parts/types.lua).
  redis.call('ZREM', EXPECTED, '')
  lease = write_lease(token, attempt, due, 'c' .. flags, node)
  redis.call('HSET', LEASE, id, lease)
  result = 'in_flight'
elseif redis.call('ZSCORE', DUE, id) then
  -- Few ids are those of occurrences, and creating the functions of schedules takes time.
  local schedule, nominal
  if string.find(id, '@%d+$') then schedule, nominal = schedules().parse_occurrence_id(id) end
  local state = schedule and schedules().read_state(schedule)
  local pending = state and state.next == nominal
  local after = pending and schedules().next_after(state, nominal)
  if pending then
    if not after and schedules().has_more(state) then return 'short' end
    schedules().try_writes(schedule, state)
  end
  remove(id)
  count('cancelled', 1)
  if pending then schedules().advance(schedule, state, after) end
  if schedule then schedules().ended(id) end
  -- Another occurrence of this schedule may be due earlier now: the next one, if this one was
  -- rescheduled to a much later time, or an occurrence that waited for this one to end. So make
  -- sure that a node claims it in time.
  local earliest = schedule and first_due()
  if earliest then wake_next(earliest, earliest <= NOW and 1 or 0) end
  result = 'cancelled'
else
  -- As above: let `remember` write.
  redis.call('ZREM', EXPECTED, '')
end
remember(result)
return result
