-- Return whether a node should keep events that it has claimed and cannot start yet: no other node
-- has joined and claimed recently, and the namespace is not paused.
--
-- Kind      reads
-- Roles     node
-- Uses      types
-- Commands  hget zcount zscore
--
-- Arguments
--   node          the node's incarnation
--   silent_after  number: how long a silent node is remembered, in µs
--
-- Returns   1 if it should keep them, else 0
local wrong = check_types(ALIVE, SYS)
if wrong then return wrong end
if redis.call('HGET', SYS, 'paused') == '1' then return 0 end

local since = NOW - silent_after
local others = redis.call('ZCOUNT', ALIVE, '(' .. digits(since), '+inf')
local own = redis.call('ZSCORE', ALIVE, node)
if own and tonumber(own) > since then others = others - 1 end
return others <= 0 and 1 or 0
