-- Return one schedule.
--
-- Kind      reads
-- Roles     node
-- Uses      events plan
-- Commands  hget zscore
--
-- Arguments
--   schedule  its name
--
-- Returns   {definition, template, state, due, readable}; {} if it does not exist
--   due       when the pending occurrence is due; '' if there is none
--   readable  1 if dtimer has written the state, else ''
local text = redis.call('HGET', BEATS, schedule)
if not text then return {} end
local beat = plan().read_beat(schedule)
local pending = beat and beat.next ~= '' and plan().occurrence(schedule, beat.next)
local due = pending and redis.call('ZSCORE', DUE, pending)
return {
  redis.call('HGET', DEFS, schedule) or '', redis.call('HGET', PLANS, schedule) or '', text,
  due or '', beat and '1' or '',
}
