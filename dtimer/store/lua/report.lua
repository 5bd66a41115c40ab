-- Update what a registered node says about itself, and write the history of the minute before.
--
-- Nodes call this once a minute, and more often while they change. Only claims update the time in
-- ALIVE: if the server loses the last claim, the node detects the rollback by this time.
--
-- Kind      idempotent
-- Roles     node
-- Uses      types
-- Commands  hget hlen hmget hset zcard zcount
--
-- Arguments
--   node         the node's incarnation
--   description  what it says about itself, as JSON
--   history      1 to write the history, else ''
--
-- Returns   µs until the next minute begins
local wrong = check_types(DUE, LEASE, DIED, SYS, NODES)
  or check_version(redis.call('HGET', SYS, 'v'))
if wrong then return wrong end

local joined = string.match(redis.call('HGET', NODES, node) or '', '^%d+')
if joined then redis.call('HSET', NODES, node, write_registration(joined, description)) end

local minute = math.floor(NOW / MINUTE)
-- Write the row of the minute that has ended. Its counts are what the totals have grown by since
-- the row before.
local function write_minute()
  local last, known_totals, known_late = parse_history_end(redis.call('HGET', SYS, 'history:end'))
  if last == minute then return end
  local totals = redis.call('HMGET', SYS, unpack(history_totals()))
  local buckets = {}
  for i = 0, 80 do buckets[i + 1] = 'n:late:' .. i end
  local late = redis.call('HMGET', SYS, unpack(buckets))
  local waiting = redis.call('ZCARD', DUE)
  for i, total in ipairs(totals) do totals[i] = tonumber(total or 0) or 0 end
  for i, number in ipairs(late) do late[i] = tonumber(number or 0) or 0 end
  local history_end = write_history_end(minute, totals, late)
  -- The first row needs totals to compare with.
  if not last then
    redis.call('HSET', SYS, 'history:end', history_end)
    return
  end
  local grown, happened = {}, false
  for i, total in ipairs(totals) do
    -- A total that is lower than before was lost by the server.
    grown[i] = math.max(0, total - (known_totals[i] or 0))
    happened = happened or grown[i] > 0
  end
  -- Nothing is written while nothing happens.
  if not happened and waiting == 0 then return end
  for i, number in ipairs(late) do late[i] = math.max(0, number - (known_late[i] or 0)) end
  local in_flight = redis.call('HLEN', LEASE)
  local hour = math.floor((minute - 1) / 60)
  local field = 'history:' .. hour % 24
  redis.call('HSET', SYS, 'history:end', history_end, field, add_history_row(
    redis.call('HGET', SYS, field), hour, minute - 1, minute - last, grown,
    {waiting - in_flight, in_flight, redis.call('ZCOUNT', DUE, '-inf', digits(NOW)),
     redis.call('ZCARD', DIED), share_below(late, 0.5), share_below(late, 0.99)}))
end

if history == '1' then write_minute() end
return digits((minute + 1) * MINUTE - NOW)
