-- Return one schedule.
--
-- Kind      reads
-- Roles     node
-- Uses      events schedule
-- Commands  hget zscore
--
-- Arguments
--   schedule  its name
--
-- Returns   {definition, template, state, due, readable}; {} if it does not exist
--   due       when the pending occurrence is due; '' if there is none
--   readable  1 if dtimer has written the state, else ''
local text = redis.call('HGET', STATES, schedule)
if not text then return {} end
local state = schedules().read_state(schedule)
local pending = state and state.next ~= '' and schedules().occurrence_id(schedule, state.next)
local due = pending and redis.call('ZSCORE', DUE, pending)
return {
  redis.call('HGET', DEFINITIONS, schedule) or '', redis.call('HGET', TEMPLATES, schedule) or '',
  text, due or '', state and '1' or '',
}
