-- Change the state of one event, and read what is stored about it.
--
-- Commands  hdel hget hincrby hset zadd zrem

-- Add to one of the totals that stats.lua returns. Return the total, or '' if it is not a number.
local function count(what, n)
  if n == 0 then return '' end
  -- The counted change has been made already. So a total with a value that dtimer has not written
  -- must not make the script fail.
  local total = redis.pcall('HINCRBY', SYS, 'n:' .. what, n)
  return type(total) == 'number' and digits(total) or ''
end

-- Remove an event, whether it is scheduled or in flight. The ZREM comes first: Redis allows it when
-- it is out of memory, and then allows all later writes of the script.
local function remove(id)
  redis.call('ZREM', DUE, id)
  redis.call('HDEL', BODY, id)
  redis.call('HDEL', LEASE, id)
  redis.call('HDEL', TRIES, id)
end

-- Undo a claim: the event is due at `due`, and the attempt is not counted. `total` is the name of
-- the total that counts this, 'released' by default.
local function release(id, attempt, due, total)
  redis.call('ZADD', DUE, due, id)
  redis.call('HDEL', LEASE, id)
  if attempt > 1 then redis.call('HSET', TRIES, id, attempt - 1) end
  count(total or 'released', 1)
end

-- A body above MOST_BODY is larger than any payload that may be posted (dtimer/model/options.py),
-- and a node might not be able to receive it. Its dead letter keeps the first KEPT bytes.
local MOST_BODY, KEPT = 64 * 1024 * 1024 + 1000, 1024 * 1024

-- Move an event to the dead letters. Its stored bytes stay as they are.
local function bury(id, attempt, reason, err)
  local body = redis.call('HGET', BODY, id) or ''
  if #body > MOST_BODY then
    err = #body .. ' bytes are stored of it, of which the first ' .. KEPT .. ' are kept'
    body = string.sub(body, 1, KEPT)
  end
  remove(id)
  redis.call('HSET', DEAD, id, write_letter(attempt, reason, err, body))
  redis.call('ZADD', DIED, digits(NOW), id)
  count(died_total(reason), 1)
end
