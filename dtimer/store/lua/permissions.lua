-- Try every command that the scripts use, each in a form that changes nothing. What this
-- client may not run, or the server refuses for another reason, is told and not raised.
-- Also in a namespace that is not open yet, and may be foreign.
--
-- ARGV[1]   never '': the prelude would ask for the time, which may be what is refused
--
-- Returns   command and what it was refused for, in turn; nothing when all went well
local NOBODY = '\1nobody'

local refused = {}
for _, words in ipairs({
  {'HDEL', BODY, NOBODY},
  {'HEXISTS', BODY, NOBODY},
  {'HGET', BODY, NOBODY},
  {'HKEYS', BEATS},
  {'HLEN', BODY},
  {'HMGET', BODY, NOBODY},
  {'HRANDFIELD', BODY, '1'},
  {'PUBLISH', string.sub(DUE, 1, -4) .. 'echo:nobody', ''},
  {'TIME'},
  {'TYPE', DUE},
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
  -- These last: the key has to be there for the second, and an HDEL has to follow.
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
