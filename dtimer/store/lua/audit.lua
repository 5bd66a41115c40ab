-- Check that the keys agree with each other. Return their sizes, and the problems found in a random
-- sample of each.
--
-- Kind      reads
-- Commands  hexists hlen hrandfield zcard zrandmember zscore
--
-- Arguments
--   sample  number: how many members of each key to check
--
-- Returns   {due, bodies, dead, graves, leases, schedules, plans, strays}
--   graves  the size of the index of the dead letters by time; dead is the number of their records
--   schedules, plans  how many schedules have a state (BEATS), and how many a payload (PLANS)
--   strays  problem and id, for each problem: no_body (due without a body), no_due (a body that is
--           never due), no_grave (a dead letter that graves does not list), no_letter (an entry
--           of graves without its letter), no_event (a lease without an event)
local strays = {}

local function stray(what, id)
  strays[#strays + 1] = what
  strays[#strays + 1] = id
end

for _, id in ipairs(redis.call('ZRANDMEMBER', DUE, sample)) do
  if redis.call('HEXISTS', BODY, id) == 0 then stray('no_body', id) end
end
for _, id in ipairs(redis.call('ZRANDMEMBER', GRAVES, sample)) do
  if redis.call('HEXISTS', DEAD, id) == 0 then stray('no_letter', id) end
end
for _, pair in ipairs({{BODY, DUE, 'no_due'}, {DEAD, GRAVES, 'no_grave'}, {LEASE, DUE, 'no_event'}}) do
  for _, id in ipairs(redis.call('HRANDFIELD', pair[1], sample)) do
    if not redis.call('ZSCORE', pair[2], id) then stray(pair[3], id) end
  end
end
return {
  redis.call('ZCARD', DUE),
  redis.call('HLEN', BODY),
  redis.call('HLEN', DEAD),
  redis.call('ZCARD', GRAVES),
  redis.call('HLEN', LEASE),
  redis.call('HLEN', BEATS),
  redis.call('HLEN', PLANS),
  strays,
}
