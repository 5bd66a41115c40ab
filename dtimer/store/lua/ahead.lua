-- Count the events that fall due in each of the next periods.
--
-- An event in flight counts at the end of its lease. The number of commands is that of the periods.
--
-- Kind      reads
-- Commands  zcount
--
-- Arguments
--   period  number: the length of a period, in µs
--   periods  number: how many
--
-- Returns   {now, counts}
local counts = {}
for i = 1, periods do
  local from = NOW + (i - 1) * period
  counts[i] = redis.call('ZCOUNT', DUE, '(' .. digits(from), digits(from + period))
end
return {digits(NOW), counts}
