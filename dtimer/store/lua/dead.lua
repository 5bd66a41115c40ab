-- One page of the dead letters, the oldest first.
--
-- Uses      walk
--
-- ARGV[3]   how many
-- ARGV[4]   when the last one of the page before died, in µs; '' for the first page
-- ARGV[5]   and its id
-- ARGV[6]   the score at which the walk ends, as the first page has returned it; there ''
-- ARGV[7]   and the id
--
-- Returns   {now, end score, end id, more, letters}
--   end       the last place that existed when the walk began; '' when there was none
--   more      1 when the walk goes on after the last letter of this page, else ''
--   letters   id, died and letter of each in turn
local end_score, end_id = ARGV[6], ARGV[7]
if end_score == '' then end_score, end_id = last_place(GRAVES, '+inf') end
local from = ARGV[4] == '' and 0 or rank_after(GRAVES, ARGV[4], ARGV[5])
local limit = tonumber(ARGV[3])
local letters, bytes, more = {}, 0, ''
local page = end_score == '' and {}
  or redis.call('ZRANGE', GRAVES, from, from + limit - 1, 'WITHSCORES')
for i = 1, #page, 2 do
  local id, score = page[i], page[i + 1]
  if comes_after(score, id, end_score, end_id) then break end
  local letter = redis.call('HGET', DEAD, id) or ''
  for _, v in ipairs({id, score, letter}) do letters[#letters + 1] = v end
  bytes = bytes + #letter
  if i + 1 == 2 * limit or bytes > MOST_PAGE then
    more = '1'
    break
  end
end
return {digits(NOW), end_score, end_id, more, letters}
