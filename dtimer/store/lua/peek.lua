-- Return one event, in any state.
--
-- Kind      reads
-- Roles     node producer
-- Commands  hget zscore
--
-- Arguments
--   id      the event
--
-- Returns   {state, due, attempt, body}; {} if the event does not exist
--   state     scheduled, in_flight or dead
--   due       when it is due or, for a dead letter, when it died
--   body      the stored body or, for a dead letter, the letter
local score = redis.call('ZSCORE', DUE, id)
if score then
  local body = redis.call('HGET', BODY, id) or ''
  local token, attempt, due = parse_lease(redis.call('HGET', LEASE, id))
  if token then return {'in_flight', due, tostring(attempt), body} end
  return {'scheduled', score, redis.call('HGET', TRIES, id) or '0', body}
end
local letter = redis.call('HGET', DEAD, id)
if letter then return {'dead', redis.call('ZSCORE', DIED, id) or '0', '0', letter} end
return {}
