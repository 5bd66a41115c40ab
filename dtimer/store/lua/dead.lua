-- Return one page of the dead letters, oldest or newest first.
--
-- Kind      reads
-- Uses      walk
-- Commands  hget zrange zscore
--
-- Arguments
--   limit        number: how many letters to return, at most
--   newest       1 to begin with the newest, else ''
--   after_score  when the last letter of the previous page died, in µs; '' for the first page
--   after_id     its id
--   end_score    the end, as the first page returned it; '' for the first page
--   end_id       its id
--
-- Returns   {now, end score, end id, more, letters}
--   end       score and id of the newest letter when the first page was read; '' and '' if none
--   more      1 if another page follows, else ''
--   letters   id, time of death and letter of each
if end_score == '' then end_score, end_id = last_place(DIED, '+inf') end
local from = after_score == '' and 0 or rank_after(DIED, after_score, after_id)
local to = from + limit - 1
if newest == '1' then
  -- The page ends before the position where the previous one began.
  to = after_score == '' and rank_after(DIED, end_score, end_id) - 1 or
    from - (redis.call('ZSCORE', DIED, after_id) == after_score and 2 or 1)
  from = math.max(0, to - limit + 1)
end
local letters, bytes, more = {}, 0, ''
local page = (end_score == '' or to < 0) and {}
  or redis.call('ZRANGE', DIED, from, to, 'WITHSCORES')
for i = 1, #page, 2 do
  local at = newest == '1' and #page - i or i
  local id, score = page[at], page[at + 1]
  if newest ~= '1' and comes_after(score, id, end_score, end_id) then break end
  local letter = redis.call('HGET', DEAD, id) or ''
  for _, v in ipairs({id, score, letter}) do letters[#letters + 1] = v end
  bytes = bytes + #letter
  if i + 1 == 2 * limit or bytes > MOST_PAGE then
    more = '1'
    break
  end
end
return {digits(NOW), end_score, end_id, more, letters}
