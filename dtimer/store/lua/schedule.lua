-- Look at one schedule.
--
-- Uses      events plan
--
-- ARGV[3]   schedule
--
-- Returns   {} when there is none, or {definition, plan, beat, due of the pending or '', 1 when
--           the beat can be read, else ''}
local text = redis.call('HGET', BEATS, ARGV[3])
if not text then return {} end
local beat = plan().read_beat(ARGV[3])
local pending = beat and beat.next ~= '' and plan().occurrence(ARGV[3], beat.next)
local due = pending and redis.call('ZSCORE', DUE, pending)
return {
  redis.call('HGET', DEFS, ARGV[3]) or '', redis.call('HGET', PLANS, ARGV[3]) or '', text,
  due or '', beat and '1' or '',
}
