-- Return the names of all schedules. They are few, because programs declare them.
--
-- ARGV[2]   the last argument; it is common to all scripts
--
-- Returns   the names, in no particular order
return redis.call('HKEYS', BEATS)
