-- Return one page of the waiting events, in order of due time. Events in flight are skipped.
--
-- Kind      reads
-- Uses      events schedule walk
-- Commands  hget hmget zcount zrange
--
-- Arguments
--   limit        number: how many events to look at
--   low          the earliest due time: µs since the epoch, or '+<µs>' from now; '-inf' for none
--   high         the latest due time, likewise; '+inf' for none
--   schedule     return only the occurrences of this schedule; '' for all events
--   after_score  the score at which the previous page ended; '' for the first page
--   after_id     its id
--   end_score    the end, as the first page returned it; '' for the first page
--   end_id       its id
--
-- Returns   {now, end score, end id, last score, last id, events}
--   end       the last position that existed when the first page was read; '' if there was none
--   last      where this page ended; '' if no other page follows
--   events    id, due, tries, body and mark of each. The mark is p for the pending occurrence
--             of a schedule, else ''
local function bound(text)
  if string.match(text, '^%+%-?%d') then return digits(NOW + tonumber(string.sub(text, 2))) end
  return text
end

local from
if after_score == '' then
  local first = bound(low)
  from = first == '-inf' and 0 or redis.call('ZCOUNT', DUE, '-inf', '(' .. first)
  end_score, end_id = last_place(DUE, bound(high))
else
  from = rank_after(DUE, after_score, after_id)
end

local page = end_score == '' and {}
  or redis.call('ZRANGE', DUE, from, from + limit - 1, 'WITHSCORES')
local ids, scores, last_score, last_id = {}, {}, '', ''
for i = 1, #page, 2 do
  local id, score = page[i], page[i + 1]
  if comes_after(score, id, end_score, end_id) then break end
  if schedule == '' or schedules().parse_occurrence_id(id) == schedule then
    ids[#ids + 1] = id
    scores[#ids] = score
  end
  if i == 2 * limit - 1 then last_score, last_id = score, id end
end
if #ids == 0 then return {digits(NOW), end_score, end_id, last_score, last_id, {}} end

-- Return the mark of an event; nil if it is not listed.
local function mark_of(id, body)
  local _, _, mark = parse_body(body)
  if mark ~= 's' then return schedule == '' and '' or nil end
  local name, nominal = schedules().parse_occurrence_id(id)
  local state = name and schedules().read_state(name)
  return state and state.next == nominal and 'p' or ''
end

local leases = redis.call('HMGET', LEASE, unpack(ids))
local tries = redis.call('HMGET', TRIES, unpack(ids))
local events, bytes = {}, 0
for i, id in ipairs(ids) do
  local body = not leases[i] and (redis.call('HGET', BODY, id) or '')
  local mark = body and mark_of(id, body)
  if mark then
    for _, v in ipairs({id, scores[i], tries[i] or '0', body, mark}) do events[#events + 1] = v end
    bytes = bytes + #body
  end
  if bytes > MOST_PAGE then
    last_score, last_id = scores[i], id
    break
  end
end
return {digits(NOW), end_score, end_id, last_score, last_id, events}
