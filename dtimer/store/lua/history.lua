-- Return the history of a namespace.
--
-- Kind      reads
-- Commands  hmget
--
-- Returns   {now, hours}
--   hours   the rows of each hour of the day (parts/format.lua); '' if there are none
local fields = {}
for hour = 0, 23 do fields[hour + 1] = 'history:' .. hour end
local hours = redis.call('HMGET', SYS, unpack(fields))
for i = 1, #fields do hours[i] = hours[i] or '' end
return {digits(NOW), hours}
