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
--   graves  the size of DIED, the index of the dead letters by time; dead is their number
--   schedules, plans  how many schedules have a state, and how many a template
--   strays  problem and id, for each problem: no_body (due without a body), no_due (a body that is
--           never due), no_grave (a dead letter that is not in DIED), no_letter (an id in DIED
--           without a dead letter), no_event (a lease without an event)
local strays = {}

local function stray(what, id)
  strays[#strays + 1] = what
  strays[#strays + 1] = id
end

for _, id in ipairs(redis.call('ZRANDMEMBER', DUE, sample)) do
  if redis.call('HEXISTS', BODY, id) == 0 then stray('no_body', id) end
end
for _, id in ipairs(redis.call('ZRANDMEMBER', DIED, sample)) do
  if redis.call('HEXISTS', DEAD, id) == 0 then stray('no_letter', id) end
end
local pairs_of_keys = {{BODY, DUE, 'no_due'}, {DEAD, DIED, 'no_grave'}, {LEASE, DUE, 'no_event'}}
for _, pair in ipairs(pairs_of_keys) do
  for _, id in ipairs(redis.call('HRANDFIELD', pair[1], sample)) do
    if not redis.call('ZSCORE', pair[2], id) then stray(pair[3], id) end
  end
end
return {
  redis.call('ZCARD', DUE),
  redis.call('HLEN', BODY),
  redis.call('HLEN', DEAD),
  redis.call('ZCARD', DIED),
  redis.call('HLEN', LEASE),
  redis.call('HLEN', STATES),
  redis.call('HLEN', TEMPLATES),
  strays,
}
