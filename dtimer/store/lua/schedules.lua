-- Return the names of all schedules. They are few, because programs declare them.
--
-- Kind      reads
-- Commands  hkeys
--
-- Returns   {name, ...}, in no particular order
return redis.call('HKEYS', STATES)
