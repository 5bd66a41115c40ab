-- One page of the dead letters, the oldest first.
--
-- ARGV[3]   how many
-- ARGV[4]   the last id of the page before; '' for the first page
-- ARGV[5]   and when that one died, in µs
--
-- Returns   id, died and letter of each in turn
local from = 0
if ARGV[4] ~= '' then
  local score = redis.call('ZSCORE', GRAVES, ARGV[4])
  if score == ARGV[5] then
    from = redis.call('ZRANK', GRAVES, ARGV[4]) + 1
  else
    from = redis.call('ZCOUNT', GRAVES, '-inf', '(' .. ARGV[5])
  end
end
local letters = {}
local page = redis.call('ZRANGE', GRAVES, from, from + tonumber(ARGV[3]) - 1, 'WITHSCORES')
for i = 1, #page, 2 do
  for _, v in ipairs({page[i], page[i + 1], redis.call('HGET', DEAD, page[i]) or ''}) do
    letters[#letters + 1] = v
  end
end
return letters
