-- Return whether no other node has joined and claimed recently.
--
-- Uses      guard
--
-- ARGV[3]   the node's incarnation
-- ARGV[4]   how long a silent node is remembered, in µs
--
-- Returns   1 if it is alone, else 0
local wrong = guard(ALIVE)
if wrong then return wrong end

local since = NOW - tonumber(ARGV[4])
local others = redis.call('ZCOUNT', ALIVE, '(' .. digits(since), '+inf')
local own = redis.call('ZSCORE', ALIVE, ARGV[3])
if own and tonumber(own) > since then others = others - 1 end
return others <= 0 and 1 or 0
