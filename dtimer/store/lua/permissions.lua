-- Try every command that the scripts use, in a form that changes nothing. A command that this
-- client may not run, or that the server refuses for another reason, is returned and not raised.
-- The keys need not exist, and may hold values of another program. BODY, STATES, DUE and SYS are
-- keys of the namespace (parts/prelude.lua).
--
-- Kind      reads
-- Commands  hdel
--
-- Returns   {command, error, ...}, for each command that is refused
local NOBODY = '\1nobody'

local refused = {}
for _, words in ipairs({
  {'HDEL', BODY, NOBODY},
  {'HEXISTS', BODY, NOBODY},
  {'HGET', BODY, NOBODY},
  {'HKEYS', STATES},
  {'HLEN', BODY},
  {'HMGET', BODY, NOBODY},
  {'HRANDFIELD', BODY, '1'},
  {'HSTRLEN', BODY, NOBODY},
  {'PUBLISH', string.sub(DUE, 1, -4) .. 'echo:nobody', ''},
  {'TIME'},
  {'TYPE', DUE},
  -- A key that never exists.
  {'UNLINK', string.sub(DUE, 1, -4) .. 'nobody'},
  {'ZADD', DUE, 'XX', '0', NOBODY},
  {'ZCARD', DUE},
  {'ZCOUNT', DUE, '0', '0'},
  {'ZMSCORE', DUE, NOBODY},
  {'ZRANDMEMBER', DUE, '1'},
  {'ZRANGE', DUE, '0', '0'},
  {'ZRANGEBYSCORE', DUE, '0', '0', 'LIMIT', '0', '1'},
  {'ZRANK', DUE, NOBODY},
  {'ZREM', DUE, NOBODY},
  {'ZREVRANGEBYSCORE', DUE, '0', '0', 'LIMIT', '0', '1'},
  {'ZSCORE', DUE, NOBODY},
  -- These come last: RENAME needs an existing key, and an HDEL must undo the HSET.
  {'HSET', SYS, NOBODY, '0'},
  {'RENAME', SYS, SYS},
  {'HINCRBY', SYS, NOBODY, '0'},
}) do
  local reply = redis.pcall(unpack(words))
  local wrong = type(reply) == 'table' and reply.err
  if wrong and not string.find(wrong, 'no such key', 1, true) then
    refused[#refused + 1] = words[1]
    refused[#refused + 1] = wrong
  end
end
redis.pcall('HDEL', SYS, NOBODY)
return refused
