-- The names of all schedules. They are what programs declare, so not many.
--
-- ARGV[2]   nothing more is asked for
--
-- Returns   the names, in no order
return redis.call('HKEYS', BEATS)
