-- Return one event, in any state.
--
-- Uses      events
--
-- ARGV[3]   id
--
-- Returns   {state, due, attempt, body or dead letter}; {} if the event does not exist
local id = ARGV[3]
local score = redis.call('ZSCORE', DUE, id)
if score then
  local body = redis.call('HGET', BODY, id) or ''
  local token, attempt, due = parse_lease(redis.call('HGET', LEASE, id))
  if token then return {'in_flight', due, tostring(attempt), body} end
  return {'scheduled', score, redis.call('HGET', TRIES, id) or '0', body}
end
local letter = redis.call('HGET', DEAD, id)
if letter then return {'dead', redis.call('ZSCORE', GRAVES, id) or '0', '0', letter} end
return {}
