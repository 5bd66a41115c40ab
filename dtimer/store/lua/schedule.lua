-- Return one schedule.
--
-- Uses      events plan
--
-- ARGV[3]   schedule
--
-- Returns   {definition, plan, beat, due time of the pending occurrence or '', 1 if the beat can
--           be read, else ''}; {} if it does not exist
local text = redis.call('HGET', BEATS, ARGV[3])
if not text then return {} end
local beat = plan().read_beat(ARGV[3])
local pending = beat and beat.next ~= '' and plan().occurrence(ARGV[3], beat.next)
local due = pending and redis.call('ZSCORE', DUE, pending)
return {
  redis.call('HGET', DEFS, ARGV[3]) or '', redis.call('HGET', PLANS, ARGV[3]) or '', text,
  due or '', beat and '1' or '',
}
